// An MoE layer over experts that lie in memory, and a dense layer: who multiplies what, in which order.
#pragma once

#include <string>
#include <vector>

#include "processor.hpp"

namespace moe_local {

struct Machine {
    const Processor* processor;
    int threads;
};

// Numbers [rows, columns] one row after the other.
struct Numbers {
    void* data;
    Type type;
    int rows, columns;

    uint8_t* row(int at) const { return static_cast<uint8_t*>(data) + size_t(at) * columns * size_of(type); }
};

// Where the arrays of a matrix begin in a record, in bytes; -1: there is none.
struct Place {
    int64_t data = -1, scales = -1, whole = -1;
};

// A projection of an expert: one matrix [out, in], or two of half the outputs each, one after the other; and its bias.
struct Projection {
    Kind kind;
    int out, in, group;
    int scale_rows, scale_columns;
    Place first, second;
    int64_t bias_offset;
    Type bias_type;

    bool halved() const { return second.data >= 0; }
    Matrix at(const uint8_t* record, const Place& place, int rows) const {
        return {record + place.data, place.scales < 0 ? nullptr : record + place.scales,
                place.whole < 0 ? nullptr : reinterpret_cast<const float*>(record + place.whole), kind, rows, in, group, scale_rows, scale_columns};
    }
    Matrix whole(const uint8_t* record) const { return at(record, first, out); }
    Matrix lower(const uint8_t* record) const { return halved() ? at(record, first, out / 2) : whole(record); }
    Matrix upper(const uint8_t* record) const {
        return halved() ? at(record, second, out / 2) : whole(record).from(out / 2);
    }
};

struct ExpertLayout {
    Projection up, down;  // up: or gate and up together
    Gating gating;
    int64_t size;  // bytes of a record
};

// Which tokens go to which expert, from index [tokens, choices]; an expert of `experts` or more is none.
class Routing {
  public:
    Routing(const int64_t* index, int tokens, int choices, int experts);

    // Those that are chosen, each once: of one token in its order, of several ascending.
    const std::vector<int>& chosen() const { return chosen_; }
    // The places in the index, ascending, of an expert.
    const int* places(int expert) const { return places_.data() + starts_[size_t(expert)]; }
    int count(int expert) const { return starts_[size_t(expert) + 1] - starts_[size_t(expert)]; }
    bool is_there(int place) const { return there_[size_t(place)]; }

    int tokens, choices, experts;

  private:
    std::vector<int> chosen_, starts_, places_;
    std::vector<char> there_;
};

// The outputs of `chosen` experts, whose records are at `records`, for the tokens of x that go to each: of the choice
// at place p of the index to row p of `outputs` [tokens * choices, columns]. With Step::up only as far as the outputs
// of up, and with Step::down from `x`, the inputs of down by place.
void run_experts(const Machine& machine, const ExpertLayout& layout, const Routing& routing, bool exact,
                 const Numbers& x, const std::vector<int>& chosen, const std::vector<const uint8_t*>& records,
                 const Numbers& outputs);

// out[t] = the sum over j of weights[t, j] * outputs[t * choices + j], in this order.
void sum_choices(const Machine& machine, const Routing& routing, const Numbers& outputs, const Numbers& weights,
                 const Numbers& out);

// out = x @ matrix.T + bias (float32 [out], or null).
void multiply_dense(const Machine& machine, const Matrix& matrix, bool exact, const Numbers& x, const float* bias,
                    const Numbers& out);

}  // namespace moe_local
