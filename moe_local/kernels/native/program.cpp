#include "program.hpp"

#include <algorithm>
#include <stdexcept>

namespace moe_local {

Program*& recording() {
    static thread_local Program* current = nullptr;
    return current;
}

Program::~Program() {
    if (recording() == this) recording() = nullptr;
}

bool Program::bind(const Caches& caches) {
    then_ = caches;
    const Now now{0, caches, caches};
    return std::all_of(buffers_.begin(), buffers_.end(), [&](const auto& each) {
        return now.knows(each.first) && each.second == caches.room;
    });
}

void Program::run(int64_t later, const Caches& caches) const {
    if (!unfit_.empty()) throw std::invalid_argument("cannot be done again: " + unfit_);
    const Now now{later, then_, caches};
    for (const Step& step : steps_) step(now);
}

}  // namespace moe_local
