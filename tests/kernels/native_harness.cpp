// The kernels without Python: for every processor that this machine is, a line `name digest` of what they make of fixed
// pseudo-random matrices, experts and activations. Any NaN counts as one: which it is, processors do not agree on.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "layer.hpp"

using namespace moe_local;

namespace {

class Random {
  public:
    uint32_t next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state_ >> 33);
    }
    float number() { return float(int32_t(next() % 20001) - 10000) / 5000; }

  private:
    uint64_t state_ = 1;
};

class Digest {
  public:
    void add(const std::vector<float>& numbers) {
        for (float number : numbers) add(number == number ? bits_of(number) : 0x7fc00000);
    }
    void add(const std::vector<uint16_t>& numbers) {
        for (uint16_t number : numbers) add((number & 0x7fff) > 0x7f80 ? 0x7fc0 : uint32_t(number));
    }
    uint64_t value() const { return value_; }

  private:
    void add(uint32_t bits) { value_ = (value_ ^ bits) * 1099511628211u; }
    uint64_t value_ = 14695981039346656037u;
};

// Exactly as large as what is read of it: a byte beyond is an error that the sanitizer sees.
std::vector<uint8_t> matrix(Random& random, Kind kind, int out, int in, int group) {
    const Matrix shape{nullptr, nullptr, nullptr, kind, out, in, group};
    std::vector<uint8_t> made(shape.bytes());
    for (auto& byte : made) byte = uint8_t(random.next());
    if (unit_of(kind).columns) return made;
    for (int b = 0; b < shape.blocks(); b++) {
        uint8_t* block = made.data() + size_t(b) * shape.block_bytes();
        if (kind == Kind::int4) {
            for (int g = 0; g < shape.groups(); g++) {
                for (int i = 0; i < 32; i++) {
                    const uint16_t scale = to_bf16(random.number() / float(in));
                    std::memcpy(block + size_t(g) * (8 * group + 64) + 8 * group + 2 * i, &scale, 2);
                }
            }
        } else {
            for (size_t at = 0; at < shape.block_bytes() - 64; at++)
                if (block[at] == 0x80) block[at] = 0;
            for (int i = 0; i < 16; i++) {
                const float scale = random.number() / float(64 * in);
                std::memcpy(block + shape.block_bytes() - 64 + 4 * i, &scale, 4);
            }
        }
    }
    return made;
}

std::vector<float> activations(Random& random, int rows, int columns) {
    std::vector<float> made(size_t(rows) * columns);
    for (auto& number : made) number = random.number();
    for (int row = 0; row < rows; row++) {
        float* first = made.data() + size_t(row) * columns;
        const float scale = std::ldexp(1.0f, (row * 7) % 60 - 30);
        for (int c = 0; c < columns && row % 5 == 1; c++) first[c] *= scale;
        if (row % 11 == 3) first[columns / 2] = NAN;
        if (row % 11 == 7) first[columns - 1] = INFINITY;
        if (row % 11 == 9) std::fill(first, first + columns, 0.0f);
    }
    return made;
}

// Every kind that lies row by row, of any bytes: infinite scales and NaN among them.
void rowwise(const Machine& machine, Digest& digest) {
    Random random;
    for (int kind = int(Kind::mxfp4); kind <= int(Kind::fp8); kind++) {
        const Unit unit = unit_of(Kind(kind));
        const int out = 48, in = unit.columns * (unit.columns == 256 ? 1 : 3);
        auto held = matrix(random, Kind(kind), out, in, unit.group);
        Matrix made{held.data(), nullptr, nullptr, Kind(kind), out, in, unit.group, 16, 64};
        std::vector<uint8_t> scales(made.scale_bytes()), whole(made.whole_bytes());
        for (auto& byte : scales) byte = uint8_t(random.next());
        for (size_t i = 0; is_float(Kind(kind)) && i < scales.size(); i += 4) {
            const float scale = random.number();
            std::memcpy(scales.data() + i, &scale, 4);
        }
        for (size_t i = 0; i < whole.size(); i += 4) {
            const float scale = random.number();
            std::memcpy(whole.data() + i, &scale, 4);
        }
        made.scales = scales.data();
        made.whole = reinterpret_cast<const float*>(whole.data());
        for (int rows : {1, 7, 100}) {
            auto x = activations(random, rows, in);
            for (bool exact : {false, true}) {
                std::vector<float> y(size_t(rows) * out);
                multiply_dense(machine, made, exact, {x.data(), Type::float32, rows, in}, nullptr,
                               {y.data(), Type::float32, rows, out});
                digest.add(y);
            }
        }
    }
}

void dense(const Machine& machine, Digest& digest) {
    Random random;
    const struct {
        Kind kind;
        int out, in, group;
    } shapes[] = {{Kind::int4, 48, 128, 32}, {Kind::int4, 112, 192, 64}, {Kind::int4, 16, 256, 128},
                  {Kind::int8, 37, 100, 64}, {Kind::int8, 1, 1, 64},     {Kind::int8, 80, 192, 64}};
    for (const auto& shape : shapes) {
        auto held = matrix(random, shape.kind, shape.out, shape.in, shape.group);
        const Matrix made{held.data(), nullptr, nullptr, shape.kind, shape.out, shape.in, shape.group};
        for (int rows : {1, 3, 8, 29}) {
            auto x = activations(random, rows, shape.in);
            const auto bias = activations(random, 1, shape.out);
            for (bool exact : {false, true}) {
                std::vector<float> out(size_t(rows) * shape.out);
                multiply_dense(machine, made, exact, {x.data(), Type::float32, rows, shape.in}, bias.data(),
                               {out.data(), Type::float32, rows, shape.out});
                digest.add(out);
            }
            std::vector<uint16_t> half, out(size_t(rows) * shape.out);
            for (float number : x) half.push_back(to_bf16(number));
            multiply_dense(machine, made, false, {half.data(), Type::bfloat16, rows, shape.in}, nullptr,
                           {out.data(), Type::bfloat16, rows, shape.out});
            digest.add(out);
        }
    }
}

constexpr int HIDDEN = 96, INNER = 80, EXPERTS = 5;

void append(std::vector<uint8_t>& record, const void* bytes, size_t count) {
    const auto* first = static_cast<const uint8_t*>(bytes);
    record.insert(record.end(), first, first + count);
}

std::vector<std::vector<uint8_t>> experts(Random& random, ExpertLayout& layout) {
    std::vector<std::vector<uint8_t>> made;
    for (int e = 0; e < EXPERTS; e++) {
        std::vector<uint8_t> record;
        for (Projection* part : {&layout.up, &layout.down}) {
            const auto held = matrix(random, part->kind, part->out, part->in, part->group);
            part->first.data = int64_t(record.size());
            append(record, held.data(), held.size());
            if (part->bias_offset < 0) continue;
            part->bias_offset = int64_t(record.size());
            for (int i = 0; i < part->out; i++) {
                const float number = random.number();
                const uint16_t half = to_bf16(number);
                part->bias_type == Type::float32 ? append(record, &number, 4) : append(record, &half, 2);
            }
        }
        layout.size = int64_t(record.size());
        made.push_back(record);
    }
    return made;
}

void layer(const Machine& machine, const Gating& gating, int64_t bias, Type bias_type, int tokens, bool exact,
           Digest& digest) {
    Random random;
    const int choices = 3, outputs = gating.gated ? 2 * INNER : INNER;
    ExpertLayout layout{{Kind::int4, outputs, HIDDEN, 32, 1, 1, {}, {}, bias, bias_type},
                        {Kind::int8, HIDDEN + 5, INNER, 64, 1, 1, {}, {}, bias, bias_type}, gating, 0};
    const auto records = experts(random, layout);
    std::vector<int64_t> index;
    for (int place = 0; place < tokens * choices; place++) index.push_back(int64_t(random.next() % (EXPERTS + 2)) - 1);
    const Routing routing(index.data(), tokens, choices, EXPERTS);
    std::vector<const uint8_t*> at;
    for (int expert : routing.chosen()) at.push_back(records[size_t(expert)].data());
    auto x = activations(random, tokens, HIDDEN), weights = activations(random, tokens, choices);
    std::vector<float> parts(size_t(tokens) * choices * layout.down.out), out(size_t(tokens) * layout.down.out);
    const Numbers made{parts.data(), Type::float32, tokens * choices, layout.down.out};
    run_experts(machine, layout, routing, exact, {x.data(), Type::float32, tokens, HIDDEN}, routing.chosen(), at, made);
    sum_choices(machine, routing, made, {weights.data(), Type::float32, tokens, choices},
                {out.data(), Type::float32, tokens, layout.down.out});
    digest.add(parts);
    digest.add(out);
}

void layers(const Machine& machine, Digest& digest) {
    for (int activation = 0; activation <= int(Activation::clamped_swiglu); activation++)
        for (int gate = 0; gate < 3; gate++)
            for (int tokens : {1, 4, 31}) {
                const bool gated = gate > 0 || activation == int(Activation::clamped_swiglu);
                const Gating gating{Activation(activation), gated, gate == 2, 1.702f, 7};
                layer(machine, gating, -1, Type::float32, tokens, tokens == 4, digest);
                layer(machine, gating, 0, gate ? Type::bfloat16 : Type::float32, tokens, tokens != 4, digest);
            }
}

}  // namespace

int main() {
    for (const char* name : {"avx512", "avx-vnni", "avx2", "neon", "portable"}) {
        const Processor* processor = choose(name);
        if (!processor) continue;
        for (int threads : {1, 3}) {
            const Machine machine{processor, threads};
            Digest digest;
            dense(machine, digest);
            rowwise(machine, digest);
            layers(machine, digest);
            std::printf("%s %016llx\n", name, static_cast<unsigned long long>(digest.value()));
        }
    }
    return 0;
}
