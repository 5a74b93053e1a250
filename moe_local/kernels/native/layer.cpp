#include "layer.hpp"

#include <algorithm>
#include <memory>

#include "team.hpp"

namespace moe_local {
namespace {

constexpr size_t WAVE = 8 << 20;  // bytes of packed activations at once
constexpr int TOKENS = 96;        // in a tile, whose outputs stay in the second cache
constexpr int WIDEST = 128;       // columns of a group
constexpr int AT_ONCE = 4;        // blocks of a task
constexpr int FEW = 4;            // rows, that one thread has packed before others are awake

// Memory that a thread keeps from call to call: no more than was ever asked for, and what was in it is lost.
class Scratch {
  public:
    uint8_t* take(size_t bytes) {
        if (bytes > size_) {
            size_ = 0;
            held_.reset();
            held_.reset(new uint8_t[bytes + 64]);
            size_ = bytes;
        }
        return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(held_.get()) + 63) & ~uintptr_t(63));
    }

  private:
    std::unique_ptr<uint8_t[]> held_;
    size_t size_ = 0;
};

size_t rounded(size_t bytes) { return (bytes + 63) & ~size_t(63); }

struct Packing {
    int groups, group;
    bool exact, paired;
    int bias;

    size_t codes(int rows) const { return rounded(size_t(groups) * group * rows * (exact ? 4 : 1)); }
    size_t bytes(int rows) const { return codes(rows) + 3 * rounded(size_t(groups) * rows * 4); }

    Rows at(uint8_t* memory, int rows) const {
        uint8_t* numbers = memory + codes(rows);
        const size_t one = rounded(size_t(groups) * rows * 4);
        return {rows,
                group,
                paired,
                bias,
                exact ? nullptr : reinterpret_cast<int8_t*>(memory),
                exact ? reinterpret_cast<float*>(memory) : nullptr,
                reinterpret_cast<float*>(numbers),
                reinterpret_cast<float*>(numbers + one),
                reinterpret_cast<int32_t*>(numbers + 2 * one)};
    }
};

int bias_of(const Processor& processor, Kind kind) { return kind == Kind::int4 ? -8 : processor.signed_bias; }

Packing packing_for(const Processor& processor, const Projection& projection, bool exact) {
    return {(projection.in + projection.group - 1) / projection.group, projection.group,
            exact || is_float(projection.kind), is_paired(projection.kind), bias_of(processor, projection.kind)};
}

void copy_row(const Rows& from, int source, const Rows& to, int target, int groups) {
    for (int g = 0; g < groups; g++) {
        const size_t a = size_t(g) * from.count + source, b = size_t(g) * to.count + target;
        if (from.codes) {
            std::memcpy(to.codes + b * to.group, from.codes + a * from.group, size_t(from.group));
            to.scales[b] = from.scales[a];
            to.sums[b] = from.sums[a];
        } else {
            std::memcpy(to.exact + b * to.group, from.exact + a * from.group, size_t(from.group) * 4);
        }
        to.offsets[b] = from.offsets[a];
    }
}

void read_bias(const Projection& projection, const uint8_t* record, int first, int count, float* to) {
    const uint8_t* at = record + projection.bias_offset;
    for (int i = 0; i < count; i++) {
        const int row = first + i;
        if (row >= projection.out)
            to[i] = 0;
        else if (projection.bias_type == Type::float32)
            std::memcpy(to + i, at + size_t(row) * 4, 4);
        else
            to[i] = from_bf16(uint16_t(at[row * 2] | at[row * 2 + 1] << 8));
    }
}

// Some of the rows of one expert.
struct Job {
    const uint8_t* record;
    const int* places;
    int count;
    Rows inputs, inner;
};

// Blocks `first` to `first + count` of down for all rows of a job, stored by place.
void project_down(const Processor& processor, const Projection& down, const Job& job, int first, int count,
                  const Numbers& outputs) {
    const Matrix matrix = down.whole(job.record);
    alignas(64) float out[TOKENS * AT_ONCE * BLOCK], bias[AT_ONCE * BLOCK];
    const int column = first * BLOCK, columns = std::min(count * BLOCK, down.out - column);
    const bool biased = down.bias_offset >= 0;
    if (biased) read_bias(down, job.record, column, columns, bias);
    for (int start = 0; start < job.count; start += TOKENS) {
        const int tokens = std::min(TOKENS, job.count - start);
        processor.multiply(matrix, first, count, job.inner, start, tokens, out, count * BLOCK);
        for (int t = 0; t < tokens; t++) {
            uint8_t* to = outputs.row(job.places[start + t]) + size_t(column) * size_of(outputs.type);
            processor.store(out + t * count * BLOCK, biased ? bias : nullptr, columns, outputs.type, to);
        }
    }
}

// The inputs of down, columns `first` to `first + count`: up, its activation, and packed again.
void up_and_activate(const Processor& processor, const ExpertLayout& layout, const Job& job, int first, int count) {
    const Projection& up = layout.up;
    const int inner = layout.down.in, blocks = count / BLOCK;
    const bool two = layout.gating.gated, turns = layout.gating.interleaved;
    alignas(64) float out[TOKENS * 2 * WIDEST], bias[2 * WIDEST], activated[WIDEST];
    const bool biased = up.bias_offset >= 0;
    if (biased) {
        read_bias(up, job.record, turns ? 2 * first : first, turns ? 2 * count : count, bias);
        if (two && !turns) read_bias(up, job.record, inner + first, count, bias + count);
    }
    const int width = two ? 2 * count : count, stride = two ? 2 * blocks * BLOCK : blocks * BLOCK;
    for (int start = 0; start < job.count; start += TOKENS) {
        const int tokens = std::min(TOKENS, job.count - start);
        if (turns) {
            processor.multiply(up.whole(job.record), 2 * first / BLOCK, 2 * blocks, job.inputs, start, tokens, out, stride);
        } else {
            processor.multiply(up.lower(job.record), first / BLOCK, blocks, job.inputs, start, tokens, out, stride);
            if (two)
                processor.multiply(up.upper(job.record), first / BLOCK, blocks, job.inputs, start, tokens,
                                   out + blocks * BLOCK, stride);
        }
        for (int t = 0; t < tokens; t++) {
            float* z = out + t * stride;
            if (biased) processor.store(z, bias, width, Type::float32, z);
            processor.activate(layout.gating, z, z + count, count, activated);
            processor.pack(activated, Type::float32, count, job.inner, start + t, first / job.inner.group);
        }
    }
}

void up_and_activate_all(const Machine& machine, const ExpertLayout& layout, const std::vector<Job>& jobs) {
    const int chunk = std::max(layout.down.group, 64), inner = layout.down.in;
    const int chunks = (inner + chunk - 1) / chunk;
    for_each(machine.threads, int(jobs.size()) * chunks, [&](int task) {
        const int first = task % chunks * chunk, count = std::min(chunk, inner - first);
        up_and_activate(*machine.processor, layout, jobs[size_t(task / chunks)], first, count);
    });
}

void project_down_all(const Machine& machine, const Projection& down, const std::vector<Job>& jobs,
                      const Numbers& outputs) {
    const int blocks = (down.out + BLOCK - 1) / BLOCK, chunks = (blocks + AT_ONCE - 1) / AT_ONCE;
    for_each(machine.threads, int(jobs.size()) * chunks, [&](int task) {
        const int first = task % chunks * AT_ONCE, count = std::min(AT_ONCE, blocks - first);
        project_down(*machine.processor, down, jobs[size_t(task / chunks)], first, count, outputs);
    });
}

void pack_all(const Machine& machine, const Numbers& x, const Rows& rows) {
    for_each(x.rows > FEW ? machine.threads : 1, x.rows,
             [&](int row) { machine.processor->pack(x.row(row), x.type, x.columns, rows, row, 0); });
}

// The inputs of each job: copied from `all`, or packed for the job where those were not.
void gather(const Machine& machine, const Numbers& x, const Rows* all, int choices, int groups,
            const std::vector<Job>& jobs) {
    for_each(machine.threads, int(jobs.size()), [&](int task) {
        const Job& job = jobs[size_t(task)];
        for (int row = 0; row < job.count; row++) {
            const int token = job.places[row] / choices;
            if (all)
                copy_row(*all, token, job.inputs, row, groups);
            else
                machine.processor->pack(x.row(token), x.type, x.columns, job.inputs, row, 0);
        }
    });
}

// Cuts what the experts see into waves whose packed activations take little memory.
template <class Each>
void in_waves(const Routing& routing, const std::vector<int>& chosen, const std::vector<const uint8_t*>& records,
              size_t bytes_a_row, const Each& each) {
    const int most = int(std::max<size_t>(TOKENS, WAVE / bytes_a_row));
    std::vector<Job> jobs;
    int rows = 0;
    for (size_t e = 0; e < chosen.size(); e++) {
        for (int done = 0, count = routing.count(chosen[e]); done < count;) {
            const int part = std::min(count - done, most - rows);
            jobs.push_back({records[e], routing.places(chosen[e]) + done, part, {}, {}});
            done += part;
            rows += part;
            if (rows == most) {
                each(jobs);
                jobs.clear();
                rows = 0;
            }
        }
    }
    if (rows) each(jobs);
}

}  // namespace

Routing::Routing(const int64_t* index, int tokens, int choices, int experts)
    : tokens(tokens), choices(choices), experts(experts), starts_(size_t(experts) + 2), there_(size_t(tokens) * choices) {
    const int all = tokens * choices;
    for (int place = 0; place < all; place++) {
        const bool there = index[place] >= 0 && index[place] < experts;
        there_[size_t(place)] = there;
        if (there) starts_[size_t(index[place]) + 2]++;
    }
    for (int e = 0; e < experts; e++)
        if (tokens > 1 && starts_[size_t(e) + 2]) chosen_.push_back(e);
    for (size_t e = 2; e < starts_.size(); e++) starts_[e] += starts_[e - 1];
    places_.resize(size_t(all));
    for (int place = 0; place < all; place++) {
        if (!there_[size_t(place)]) continue;
        int& next = starts_[size_t(index[place]) + 1];
        const int expert = int(index[place]);
        if (tokens == 1 && std::find(chosen_.begin(), chosen_.end(), expert) == chosen_.end()) chosen_.push_back(expert);
        places_[size_t(next++)] = place;
    }
}

void run_experts(const Machine& machine, const ExpertLayout& layout, const Routing& routing, bool exact,
                 const Numbers& x, const std::vector<int>& chosen, const std::vector<const uint8_t*>& records,
                 const Numbers& outputs) {
    static thread_local Scratch inputs_memory, wave_memory;
    const Packing inputs = packing_for(*machine.processor, layout.up, exact);
    const Packing inner = packing_for(*machine.processor, layout.down, exact);
    // Experts that arrive one by one see few of the tokens each: those alone are packed for them.
    int seen = 0;
    for (int expert : chosen) seen += routing.count(expert);
    const bool packs_all = seen >= x.rows;
    const int packed = packs_all ? x.rows : 0;
    const Rows all = inputs.at(inputs_memory.take(inputs.bytes(packed)), packed);
    if (packs_all) pack_all(machine, x, all);
    in_waves(routing, chosen, records, inputs.bytes(16) / 16 + inner.bytes(16) / 16, [&](std::vector<Job>& jobs) {
        size_t bytes = 0;
        for (const Job& job : jobs) bytes += inputs.bytes(job.count) + inner.bytes(job.count);
        uint8_t* memory = wave_memory.take(bytes);
        // One token's row serves as it is packed, unless the token has chosen an expert twice.
        const auto alone = [](const Job& job) { return job.count == 1; };
        const bool shared = x.rows == 1 && std::all_of(jobs.begin(), jobs.end(), alone);
        for (Job& job : jobs) {
            job.inputs = shared ? all : inputs.at(memory, job.count);
            job.inner = inner.at(memory + inputs.bytes(job.count), job.count);
            memory += inputs.bytes(job.count) + inner.bytes(job.count);
        }
        if (!shared) gather(machine, x, packs_all ? &all : nullptr, routing.choices, inputs.groups, jobs);
        up_and_activate_all(machine, layout, jobs);
        project_down_all(machine, layout.down, jobs, outputs);
    });
}

void sum_choices(const Machine& machine, const Routing& routing, const Numbers& outputs, const Numbers& weights,
                 const Numbers& out) {
    const int choices = routing.choices;
    for_each(routing.tokens > FEW ? machine.threads : 1, routing.tokens, [&](int token) {
        float scales[256];
        bool there[256];
        for (int j = 0; j < choices; j++) {
            scales[j] = read_number(weights.row(token), weights.type, j);
            there[j] = routing.is_there(token * choices + j);
        }
        machine.processor->sum(outputs.row(token * choices), choices, scales, there, out.columns, out.type,
                               out.row(token));
    });
}

void multiply_dense(const Machine& machine, const Matrix& matrix, bool exact, const Numbers& x, const float* bias,
                    const Numbers& out) {
    static thread_local Scratch memory;
    const Packing packing{matrix.groups(), matrix.group, exact || is_float(matrix.kind), is_paired(matrix.kind),
                          bias_of(*machine.processor, matrix.kind)};
    const int most = int(std::max<size_t>(TOKENS, WAVE / (packing.bytes(16) / 16)));
    for (int done = 0; done < x.rows; done += most) {
        const int count = std::min(most, x.rows - done);
        const Rows rows = packing.at(memory.take(packing.bytes(count)), count);
        pack_all(machine, {x.row(done), x.type, count, x.columns}, rows);
        const int chunks = (matrix.blocks() + AT_ONCE - 1) / AT_ONCE;
        for_each(machine.threads, chunks, [&](int chunk) {
            alignas(64) float tile[TOKENS * AT_ONCE * BLOCK];
            const int first = chunk * AT_ONCE, blocks = std::min(AT_ONCE, matrix.blocks() - first);
            const int columns = std::min(blocks * BLOCK, matrix.out - first * BLOCK);
            for (int start = 0; start < count; start += TOKENS) {
                const int tokens = std::min(TOKENS, count - start);
                machine.processor->multiply(matrix, first, blocks, rows, start, tokens, tile, blocks * BLOCK);
                for (int t = 0; t < tokens; t++) {
                    uint8_t* to = out.row(done + start + t) + size_t(first) * BLOCK * size_of(out.type);
                    machine.processor->store(tile + t * blocks * BLOCK, bias ? bias + first * BLOCK : nullptr, columns,
                                             out.type, to);
                }
            }
        });
    }
}

}  // namespace moe_local
