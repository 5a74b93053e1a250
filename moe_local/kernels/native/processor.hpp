// What each kind of processor can do in its own way; all of them give the same bits.
#pragma once

#include <cmath>
#include <type_traits>

#include "matrix.hpp"
#include "numbers.hpp"

namespace moe_local {

enum class Activation : int { none = 0, silu, gelu, gelu_tanh, relu, relu_squared, clamped_swiglu };

// How the outputs of gate and up become the inputs of down.
struct Gating {
    Activation activation;
    bool gated;        // the outputs are gate and up; or else one number each
    bool interleaved;  // gate and up take turns; or else all of gate come first
    float alpha, limit;  // of clamped_swiglu
};

struct Processor {
    const char* name;
    int signed_bias;  // minus what it adds to signed codes to make them unsigned

    // Row `row` of `rows` from `columns` numbers of x, filled up with zeros.
    void (*pack)(const void* x, Type type, int columns, const Rows& rows, int row, int first_group);

    // Blocks `first` to `first + count` of a matrix times `tokens` rows from `start`: out[token * stride + 16 * block
    // + row], float32.
    void (*multiply)(const Matrix& matrix, int first, int count, const Rows& rows, int start, int tokens, float* out,
                     int stride);

    // `columns` gated numbers of gate and up, which lie `apart` (or take turns).
    void (*activate)(const Gating& gating, const float* gate, const float* up, int columns, float* out);

    // Adds bias (null: none) and stores as `type`.
    void (*store)(const float* from, const float* bias, int count, Type type, void* to);

    // out = the sum over j of weights[j] * parts[j], in this order; parts are `apart` numbers from each other.
    void (*sum)(const void* parts, int choices, const float* weights, const bool* there, int columns, Type type,
                void* out);

    // A row's RMS norm; `rounding` as NormRounding.
    void (*norm_row)(const void* x, Type type, const float* weight, int columns, float eps, int rounding, void* out);

    // A row of 2 * half numbers turned; cos and sin of the second half begin `second` numbers on.
    void (*rotate_halves)(const void* x, Type type, const void* cos, const void* sin, Type angles, int half, int second,
                          bool rounds, void* out);

    // out[i * out_step + row] = the dot of row i of x, of `count` that are `x_step` apart, with a row of a matrix,
    // whose rows are `step` numbers apart.
    void (*dots)(const float* x, int count, int x_step, const void* matrix, Type type, int64_t step, int rows,
                 int columns, float* out, int64_t out_step);

    // In place: e to the power of each number less the greatest, which is returned; NaN where any is NaN or infinite.
    float (*exponentials)(float* x, int count);

    // In place; a NaN stays one.
    void (*sigmoids)(float* x, int count);

    // out[i * out_step + c] = the sum over rows of weights[i * weights_step + row] * rows[row, c], in this order, for
    // `count` rows of weights; rows are `step` numbers apart.
    void (*weighted_rows)(const float* weights, int count, int64_t weights_step, const uint16_t* rows, int64_t step,
                          int length, int columns, float* out, int out_step);
};

const Processor* portable();
const Processor* avx2();      // null where it was not compiled
const Processor* avx_vnni();
const Processor* avx512();
const Processor* neon();

// The fastest that this processor can run; or by `name`. Null if there is no such, or it cannot run here.
const Processor* choose(const char* name);

}  // namespace moe_local
