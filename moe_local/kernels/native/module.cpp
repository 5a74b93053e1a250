// The border to Python: addresses and sizes come in, are checked, and nothing is kept of them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "border.hpp"
#include "program.hpp"
#include "team.hpp"

namespace nb = nanobind;
using namespace moe_local;

namespace {

constexpr std::pair<const char*, Kind> KINDS[] = {
    {"int4", Kind::int4}, {"int8", Kind::int8}, {"mxfp4", Kind::mxfp4}, {"nvfp4", Kind::nvfp4},
    {"nvfp4_divided", Kind::nvfp4_divided}, {"q4_0", Kind::q4_0}, {"q8_0", Kind::q8_0}, {"q4_k", Kind::q4_k},
    {"q5_k", Kind::q5_k}, {"q6_k", Kind::q6_k}, {"gguf_mxfp4", Kind::gguf_mxfp4},
    {"nf4", Kind::nf4}, {"fp4", Kind::fp4}, {"fp8", Kind::fp8},
};

Kind kind_of(const std::string& name) {
    for (const auto& known : KINDS)
        if (name == known.first) return known.second;
    refuse("no kernel for matrices of " + name);
}

void check_shape(const Matrix& matrix) {
    const auto [kind, out, in, group] = std::make_tuple(matrix.kind, matrix.out, matrix.in, matrix.group);
    const std::string shape = std::to_string(out) + " x " + std::to_string(in) + " in groups of " + std::to_string(group);
    const Unit unit = unit_of(kind);
    bool right = out >= 1 && in >= 1 && out <= 1 << 28 && in <= 1 << 28;
    if (kind == Kind::int4)
        right = right && (group == 32 || group == 64 || group == 128) && out % BLOCK == 0 && in % group == 0;
    else if (kind == Kind::int8)
        right = right && group == INT8_GROUP;
    else
        right = right && group == unit.group && out % BLOCK == 0 && in % unit.columns == 0;
    if (is_float(kind))
        right = right && matrix.scale_rows >= 1 && matrix.scale_columns >= 64 && matrix.scale_columns % 64 == 0;
    if (!right) refuse("a matrix of " + shape + " of a kind that does not have it");
}

using Places = std::vector<std::vector<int64_t>>;  // of each matrix where its data, scales and whole begin

class ProjectionOf {
  public:
    ProjectionOf(const std::string& kind, int out, int in, int group, int scale_rows, int scale_columns,
                 const Places& places, int64_t bias_offset,
                 int bias_type, int64_t size)
        : made_{kind_of(kind), out, in, group, scale_rows, scale_columns, {}, {}, bias_offset, Type::float32} {
        if (places.empty() || places.size() > 2 || out % int(places.size())) refuse("neither one matrix nor two halves");
        const int rows = out / int(places.size());
        made_.first = placed(places[0], rows, size);
        if (places.size() == 2) made_.second = placed(places[1], rows, size);
        if (bias_offset < 0) return;
        made_.bias_type = type_of(bias_type);
        if (bias_offset > size || int64_t(out) * size_of(made_.bias_type) > size - bias_offset)
            refuse("a bias beyond its record");
    }

    Projection made_;

  private:
    Place placed(const std::vector<int64_t>& at, int rows, int64_t size) const {
        if (at.size() != 3) refuse("a matrix at another number of places than three");
        const Matrix matrix{nullptr, nullptr, nullptr, made_.kind, rows, made_.in, made_.group, made_.scale_rows,
                            made_.scale_columns};
        check_shape(matrix);
        inside(at[0], int64_t(matrix.bytes()), size);
        inside(at[1], int64_t(matrix.scale_bytes()), size);
        inside(at[2], int64_t(matrix.whole_bytes()), size);
        if (!unit_of(matrix.kind).columns && at[0] % 4) refuse("a matrix at a misaligned offset");
        if ((matrix.whole_bytes() && at[2] % 4) || (is_float(matrix.kind) && at[1] % 4))
            refuse("misaligned numbers in a record");
        return {at[0], matrix.scale_bytes() ? at[1] : -1, matrix.whole_bytes() ? at[2] : -1};
    }

    static void inside(int64_t offset, int64_t bytes, int64_t size) {
        if (bytes && (offset < 0 || offset > size || bytes > size - offset)) refuse("a matrix beyond its record");
    }
};

Activation activation_of(const std::string& name) {
    static const std::pair<const char*, Activation> known[] = {
        {"none", Activation::none},           {"silu", Activation::silu},
        {"gelu", Activation::gelu},           {"gelu_tanh", Activation::gelu_tanh},
        {"relu", Activation::relu},           {"relu_squared", Activation::relu_squared},
        {"clamped_swiglu", Activation::clamped_swiglu},
    };
    for (const auto& each : known)
        if (name == each.first) return each.second;
    refuse("no activation " + name);
}

Machine machine_of(int threads, const std::optional<std::string>& processor) {
    if (threads < 1 || threads > 256) refuse(std::to_string(threads) + " threads");
    const Processor* found = choose(processor ? processor->c_str() : nullptr);
    if (!found) refuse("no kernels for the processor " + *processor + ", or they cannot run on this one");
    return {found, threads};
}

ExpertLayout layout_of(const ProjectionOf& up, const ProjectionOf& down, const std::string& activation, bool gated,
                       bool interleaved, float alpha, float limit, int64_t size) {
    ExpertLayout made{up.made_, down.made_, {activation_of(activation), gated, interleaved, alpha, limit}, size};
    const int inner = gated ? up.made_.out / 2 : up.made_.out;
    if ((gated && up.made_.out % 2) || inner != down.made_.in) refuse("up has other outputs than down has inputs");
    if (inner % BLOCK) refuse("up and down of " + std::to_string(inner) + " numbers do not go in one");
    if (interleaved && up.made_.halved()) refuse("an interleaved gate in two matrices");
    if (!gated && up.made_.halved()) refuse("two matrices without a gate");
    if (down.made_.halved()) refuse("down in two matrices");
    if (interleaved && !gated) refuse("an interleaved gate that is none");
    if ((made.gating.activation == Activation::clamped_swiglu) && !gated) refuse("clamped_swiglu has a gate");
    return made;
}

Routing routing_of(uintptr_t address, int64_t bytes, int64_t tokens, int64_t choices, int64_t experts) {
    if (tokens < 1 || choices < 1 || choices > 256 || experts < 1 || experts > 1 << 20 || tokens > INT32_MAX / 512)
        refuse("a routing of " + std::to_string(tokens) + " tokens to " + std::to_string(choices) + " of " +
               std::to_string(experts) + " experts");
    if (!address || address % 8) refuse("index: a null or misaligned address");
    if (bytes / 8 / choices < tokens) refuse("index: too few bytes");
    nb::gil_scoped_release released;
    return Routing(reinterpret_cast<const int64_t*>(address), int(tokens), int(choices), int(experts));
}

void run(const Machine& machine, const ExpertLayout& layout, const Routing& routing, bool exact,
         const std::vector<int>& chosen, const std::vector<uintptr_t>& records, int64_t record_bytes,
         uintptr_t x, int64_t x_bytes, int x_type, uintptr_t out, int64_t out_bytes, int out_type) {
    if (chosen.size() != records.size()) refuse("not as many records as experts");
    if (record_bytes < layout.size) refuse("records of too few bytes");
    std::vector<char> seen(size_t(routing.experts));
    for (int expert : chosen) {
        if (expert < 0 || expert >= routing.experts) refuse("an expert that is not there: " + std::to_string(expert));
        if (seen[size_t(expert)]++) refuse("an expert twice: " + std::to_string(expert));
    }
    std::vector<const uint8_t*> at;
    for (uintptr_t record : records) {
        if (!record || record % 4) refuse("a record at a null or misaligned address");
        at.push_back(reinterpret_cast<const uint8_t*>(record));
    }
    const int64_t places = int64_t(routing.tokens) * routing.choices;
    const Numbers inputs = numbers("x", x, x_bytes, x_type, routing.tokens, layout.up.in);
    const Numbers outputs = numbers("outputs", out, out_bytes, out_type, places, layout.down.out);
    nb::gil_scoped_release released;
    run_experts(machine, layout, routing, exact, inputs, chosen, at, outputs);
}

void sum_all(const Machine& machine, const Routing& routing, int64_t columns, uintptr_t parts, int64_t parts_bytes,
             uintptr_t weights, int64_t weights_bytes, int weights_type, uintptr_t out, int64_t out_bytes, int type) {
    const int64_t places = int64_t(routing.tokens) * routing.choices;
    const Numbers from = numbers("outputs", parts, parts_bytes, type, places, columns);
    const Numbers by = numbers("weights", weights, weights_bytes, weights_type, routing.tokens, routing.choices);
    const Numbers to = numbers("out", out, out_bytes, type, routing.tokens, columns);
    nb::gil_scoped_release released;
    sum_choices(machine, routing, from, by, to);
}

void dense(const Machine& machine, const std::string& kind_name, int out, int in, int group, int scale_rows,
           int scale_columns, bool exact, uintptr_t matrix, int64_t matrix_bytes, uintptr_t scales, int64_t scales_bytes, uintptr_t whole,
           int64_t whole_bytes, uintptr_t bias, int64_t bias_bytes, int64_t rows, uintptr_t x,
           int64_t x_bytes, uintptr_t y, int64_t y_bytes, int type) {
    const Kind kind = kind_of(kind_name);
    const Matrix made{reinterpret_cast<const uint8_t*>(matrix),
                      reinterpret_cast<const uint8_t*>(scales),
                      reinterpret_cast<const float*>(whole),
                      kind,
                      out,
                      in,
                      group,
                      scale_rows,
                      scale_columns};
    check_shape(made);
    if (!matrix || (!unit_of(kind).columns && matrix % 4)) refuse("matrix: a null or misaligned address");
    if (matrix_bytes < int64_t(made.bytes())) refuse("matrix: too few bytes");
    if (made.scale_bytes() && (!scales || (is_float(kind) && scales % 4) || scales_bytes < int64_t(made.scale_bytes())))
        refuse("scales: none, misaligned, or too few bytes");
    if (made.whole_bytes() && (!whole || whole % 4 || whole_bytes < int64_t(made.whole_bytes())))
        refuse("whole: none, misaligned, or too few bytes");
    if (bias && (bias % 4 || bias_bytes / 4 < out)) refuse("bias: a misaligned address or too few bytes");
    const Numbers from = numbers("x", x, x_bytes, type, rows, in);
    const Numbers to = numbers("y", y, y_bytes, type, rows, out);
    const auto* shift = reinterpret_cast<const float*>(bias);
    nb::gil_scoped_release released;
    perform([=](const Now&) { multiply_dense(machine, made, exact, from, shift, to); });
}

}  // namespace

void add_ops(nb::module_& m);  // module_ops.cpp

NB_MODULE(_native, m) {
    nb::class_<Machine>(m, "Machine")
        .def("__init__",
             [](Machine* made, int threads, const std::optional<std::string>& processor) {
                 new (made) Machine(machine_of(threads, processor));
             }, nb::arg("threads"), nb::arg("processor").none() = nb::none())
        .def_prop_ro("processor", [](const Machine& self) { return self.processor->name; })
        .def_ro("threads", &Machine::threads);
    nb::class_<ProjectionOf>(m, "Projection")
        .def(nb::init<const std::string&, int, int, int, int, int, const Places&, int64_t, int, int64_t>(), nb::arg("kind"),
             nb::arg("out"), nb::arg("width"), nb::arg("group"), nb::arg("scale_rows"), nb::arg("scale_columns"), nb::arg("places"), nb::arg("bias_offset"),
             nb::arg("bias_type"), nb::arg("size"));
    nb::class_<ExpertLayout>(m, "ExpertLayout")
        .def("__init__",
             [](ExpertLayout* made, const ProjectionOf& up, const ProjectionOf& down, const std::string& activation, bool gated,
                bool interleaved, float alpha, float limit, int64_t size) {
                 new (made) ExpertLayout(layout_of(up, down, activation, gated, interleaved, alpha, limit, size));
             }, nb::arg("up"), nb::arg("down"), nb::arg("activation"), nb::arg("gated"), nb::arg("interleaved"),
             nb::arg("alpha"), nb::arg("limit"), nb::arg("size"));
    nb::class_<Routing>(m, "Routing")
        .def("__init__",
             [](Routing* made, uintptr_t address, int64_t bytes, int64_t tokens, int64_t choices, int64_t experts) {
                 new (made) Routing(routing_of(address, bytes, tokens, choices, experts));
             }, nb::arg("address"), nb::arg("bytes"), nb::arg("tokens"), nb::arg("choices"), nb::arg("experts"))
        .def_prop_ro("chosen", &Routing::chosen);
    m.def("run_experts", run);
    m.def("sum_choices", sum_all);
    m.def("multiply_dense", dense);
    m.def("team_kind", team_kind);
    add_ops(m);
}
