// What a layer does beside its matrices, for rows that lie one after the other: norms, rotary embedding, attention of
// one query, and routing. Numbers come out the same whatever rows lie beside a row.
#pragma once

#include "layer.hpp"

namespace moe_local {

// out = one + other, rounded once.
void add_numbers(const Numbers& one, const Numbers& other, const Numbers& out);

// Where the factor of a norm is rounded to the type of the rows.
enum class NormRounding : int { at_the_end = 0, before_weight = 1, of_the_factor = 2 };

// out = x / sqrt(mean(x^2) + eps) * weight (float32 [columns], or null).
void rms_norm(const Machine& machine, NormRounding rounding, float eps, const Numbers& x, const float* weight,
              const Numbers& out);

// Which two numbers of a row are turned together: those i and i + half, or neighbours. Of cos and sin there may be one
// number for both.
enum class Pairs : int { halves = 0, neighbours = 1, shared = 2 };

struct Rotary {
    Pairs in, out, angles;
    bool rounds;  // each product to the type of the rows; or else all in float32
    bool last;    // the last `size` numbers of a row are turned, or else the first
    int size;     // numbers of a row that are turned
};

// Rows x [batch, first, second, columns] turned by cos and sin [batch or 1, first or second, ...]; `by_first` says
// which of the two.
struct RotaryShape {
    int batch, first, second, columns;
    bool by_first;
};

void rotate(const Machine& machine, const Rotary& rotary, const RotaryShape& shape, const Numbers& x,
            const Numbers& cos, const Numbers& sin, const Numbers& out);

// Keys or values [batch, kv heads, length, size] of bf16, apart by so many numbers.
struct States {
    const uint16_t* data;
    int size;
    int64_t batch_step, head_step, step;

    const uint16_t* row(int batch, int head, int at) const {
        return data + batch * batch_step + head * head_step + at * step;
    }
};

// [batch or 1, heads or 1, length] to be added, or of booleans: what may be seen.
struct Mask {
    const void* data;  // null: none
    int type;          // as `Type`; 2: booleans
    int64_t batch_step, head_step;
};

struct Attention {
    int batch, heads, kv_heads, length;
    float scale;
    const float* sinks;  // [heads], or null
};

// query [batch, heads, key size] of bf16 -> out [batch, heads, value size] of bf16.
void attend(const Machine& machine, const Attention& attention, const uint16_t* query, const States& keys,
            const States& values, const Mask& mask, uint16_t* out);

enum class Scoring : int { softmax = 0, sigmoid = 1, softmax_of_chosen = 2 };
enum class GroupScore : int { none = 0, two_best = 1, best = 2 };

struct Router {
    int choices;
    Scoring scoring;
    GroupScore group_score;
    int groups, groups_kept;
    bool sorted;        // as torch.topk calls it
    bool normalises;    // chosen scores are divided by their sum + `epsilon`
    float epsilon, scale;
    bool rounds;               // logits to bf16
    const float* logits_bias;  // [experts], or null
    const float* bias;         // [experts], added to the scores for the choice alone; or null
};

// logits = x @ weight.T; then for each token which experts, and with which weights.
void route(const Machine& machine, const Router& router, const Numbers& x, const Numbers& weight,
           const Numbers& logits, const Numbers& weights, int64_t* index);

}  // namespace moe_local
