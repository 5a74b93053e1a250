// nanobind's own sources: setuptools compiles files of this tree only.
#include <nb_combined.cpp>
