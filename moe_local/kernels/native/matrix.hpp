// How matrices lie in memory, and rows of activations beside them.
//
// A matrix [out, in] of int4 or int8 is cut into blocks of 16 rows, the last filled up with zeros. What one register of
// AVX-512 holds, two of AVX2 or four of NEON, are the same 64 bytes: row r of the block has bytes 4r to 4r + 3 of them.
//
//   int4  for each group of columns: its codes, 64 bytes for 8 columns (byte 4r + j has column j in its low half and
//         column 4 + j in its high half), then 16 scales s and 16 offsets z in bf16: (code - 8) * s + z.
//   int8  64 bytes for 4 columns (byte 4r + j has column j), signed; columns filled up to a multiple of 64; then 16
//         scales in float32.
//
// The others lie row by row, as their files have them, and are brought into that order in the first cache:
//
//   mxfp4, nvfp4  two numbers a byte; scales (E8M0 of 32, E4M3 of 16 columns) in an array of their own, and for nvfp4 a
//                 number for each row that multiplies or divides them.
//   q4_0 ...      GGUF's blocks, of 32 or 256 columns.
//   nf4, fp4, fp8  numbers of a table, two a byte with the high half first, or E4M3; scales in float32 in an array of
//                 their own, one for `scale_rows` rows and `scale_columns` columns. Activations are not rounded for them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe_local {

constexpr int BLOCK = 16;       // rows
constexpr int INT8_GROUP = 64;  // columns that share a scale of the activations, multiplied by an int8 matrix

enum class Kind : int { int4, int8, mxfp4, nvfp4, nvfp4_divided, q4_0, q8_0, q4_k, q5_k, q6_k, gguf_mxfp4, nf4, fp4, fp8 };

// A kind that lies row by row: `columns` of a row in `bytes`, `group` of them with one scale.
struct Unit {
    int columns, bytes, group;
};

inline Unit unit_of(Kind kind) {
    switch (kind) {
        case Kind::mxfp4: return {32, 16, 32};
        case Kind::nvfp4: case Kind::nvfp4_divided: return {32, 16, 16};
        case Kind::q4_0: return {32, 18, 32};
        case Kind::q8_0: return {32, 34, 32};
        case Kind::q4_k: return {256, 144, 32};
        case Kind::q5_k: return {256, 176, 32};
        case Kind::q6_k: return {256, 210, 16};
        case Kind::gguf_mxfp4: return {32, 17, 32};
        case Kind::nf4: case Kind::fp4: return {64, 32, 64};
        case Kind::fp8: return {64, 64, 64};
        default: return {0, 0, 0};
    }
}

// Whether even columns come before odd ones, in eights.
inline bool is_paired(Kind kind) { return kind == Kind::mxfp4 || kind == Kind::nvfp4 || kind == Kind::nvfp4_divided; }

// Whether it is multiplied in float32, by activations as they are.
inline bool is_float(Kind kind) { return kind == Kind::nf4 || kind == Kind::fp4 || kind == Kind::fp8; }

struct Matrix {
    const uint8_t* data;
    const uint8_t* scales;  // of mxfp4, nvfp4, nf4, fp4, fp8
    const float* whole;     // of nvfp4, one a row
    Kind kind;
    int out, in;
    int group;  // columns
    int scale_rows = 1, scale_columns = 1;  // of nf4 and fp8

    int groups() const { return (in + group - 1) / group; }
    int blocks() const { return (out + BLOCK - 1) / BLOCK; }
    size_t row_bytes() const { return size_t(in / unit_of(kind).columns) * unit_of(kind).bytes; }
    size_t block_bytes() const {
        if (kind == Kind::int4) return size_t(groups()) * (8 * group + 64);
        if (kind == Kind::int8) return size_t(groups()) * group * BLOCK + 64;
        return row_bytes() * BLOCK;
    }
    size_t bytes() const { return size_t(blocks()) * block_bytes(); }
    int scales_across() const { return (in + scale_columns - 1) / scale_columns; }
    size_t scale_bytes() const {
        if (is_float(kind)) return size_t((out + scale_rows - 1) / scale_rows) * scales_across() * 4;
        return is_paired(kind) ? size_t(out) * groups() : 0;
    }
    size_t whole_bytes() const {
        return kind == Kind::nvfp4 || kind == Kind::nvfp4_divided ? size_t(out) * 4 : 0;
    }
    // From row `first` on, where a block begins.
    Matrix from(int first) const {
        Matrix rest = *this;
        rest.data += size_t(first / BLOCK) * block_bytes();
        if (is_paired(kind)) rest.scales += size_t(first) * groups();
        if (is_float(kind)) rest.scales += size_t(first / scale_rows) * scales_across() * 4;
        if (whole) rest.whole += first;
        rest.out -= first;
        return rest;
    }
};

// Activations [rows, columns], group by group of columns and not row by row, `[group][row][columns of the group]`:
// rows of 2,048 bytes would fall into a few sets of the first cache.
//
// In 8 bits a number is `codes * scales`, scales being one for each group of a row. `sums` are of the codes, `offsets`
// are sums * scales. In full, `exact` holds the numbers themselves and `offsets` their sums; codes is null. For `paired`
// kinds even columns come before odd ones, in eights.
struct Rows {
    int count;
    int group;
    bool paired;
    int bias;  // what the sums are kept multiplied with, ready to begin a dot with: see Processor
    int8_t* codes;
    float* exact;
    float* scales;   // [group][row]
    float* offsets;  // [group][row]
    int32_t* sums;   // [group][row], times `bias`
};

}  // namespace moe_local
