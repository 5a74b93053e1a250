#include "lanes_portable.hpp"
#include "multiply.hpp"

namespace moe_local {

const Processor* portable() {
    static constexpr Processor made = with("portable");
    return &made;
}

}  // namespace moe_local
