// How matrices lie in memory, and rows of activations beside them.
//
// A matrix [out, in] is cut into blocks of 16 rows, the last filled up with zeros. What one register of AVX-512 holds,
// two of AVX2 or four of NEON, are the same 64 bytes: row r of the block has bytes 4r to 4r + 3 of them.
//
//   int4  for each group of columns: its codes, 64 bytes for 8 columns (byte 4r + j has column j in its low half and
//         column 4 + j in its high half), then 16 scales s and 16 offsets z in bf16: (code - 8) * s + z.
//   int8  64 bytes for 4 columns (byte 4r + j has column j), signed; columns filled up to a multiple of 64; then 16
//         scales in float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe_local {

constexpr int BLOCK = 16;       // rows
constexpr int INT8_GROUP = 64;  // columns that share a scale of the activations, multiplied by an int8 matrix

enum class Kind : int { int4 = 0, int8 = 1 };

struct Matrix {
    const uint8_t* data;
    Kind kind;
    int out, in;
    int group;  // columns

    int groups() const { return (in + group - 1) / group; }
    int blocks() const { return (out + BLOCK - 1) / BLOCK; }
    size_t block_bytes() const {
        return kind == Kind::int4 ? size_t(groups()) * (8 * group + 64) : size_t(groups()) * group * BLOCK + 64;
    }
    size_t bytes() const { return size_t(blocks()) * block_bytes(); }
};

// Activations [rows, columns], group by group of columns and not row by row, `[group][row][columns of the group]`:
// rows of 2,048 bytes would fall into a few sets of the first cache.
//
// In 8 bits a number is `codes * scales`, scales being one for each group of a row. `sums` are of the codes, `offsets`
// are sums * scales. In full, `exact` holds the numbers themselves and `offsets` their sums; codes is null.
struct Rows {
    int count;
    int group;
    int8_t* codes;
    float* exact;
    float* scales;   // [group][row]
    float* offsets;  // [group][row]
    int32_t* sums;   // [group][row]
};

}  // namespace moe_local
