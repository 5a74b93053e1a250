// Operations of a forward pass of one token, written down as they are done, to be done again for later tokens with
// other numbers at the same addresses.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace moe_local {

// Where a layer's keys and values lie, [parts, room, ...].
struct Caches {
    uintptr_t keys, values;
    int64_t room;  // tokens
};

// What has changed since an operation was written down.
struct Now {
    int64_t later;  // tokens that there are more than then; below zero: fewer, as of another text
    Caches then, now;

    bool knows(uintptr_t buffer) const { return buffer == then.keys || buffer == then.values; }
    uintptr_t of(uintptr_t buffer) const { return buffer == then.keys ? now.keys : now.values; }
};

class Program {
  public:
    using Step = std::function<void(const Now&)>;

    Program() = default;
    Program(const Program&) = delete;
    ~Program();

    void add(Step step) { steps_.push_back(std::move(step)); }
    // An operation whose memory lies in a cache of `room` tokens that begins at `buffer`.
    void add(Step step, uintptr_t buffer, int64_t room) {
        buffers_.push_back({buffer, room});
        add(std::move(step));
    }
    // Something that cannot be done again for another token.
    void refuse(const std::string& what) { unfit_ = what; }

    // Says which caches it was written down with. Whether all that it does to caches, it does to these.
    bool bind(const Caches& caches);
    void run(int64_t later, const Caches& caches) const;

    const std::string& unfit() const { return unfit_; }
    size_t size() const { return steps_.size(); }

  private:
    std::vector<Step> steps_;
    std::vector<std::pair<uintptr_t, int64_t>> buffers_;
    std::string unfit_;
    Caches then_{};
};

// What this thread's operations are written into; null: nothing.
Program*& recording();

// Does `work`, and writes it down if this thread's operations are. It is given what has changed since.
template <class Work>
void perform(const Work& work) {
    if (recording()) recording()->add(work);
    work(Now{});
}

}  // namespace moe_local
