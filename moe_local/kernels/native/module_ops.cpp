// The border to Python of ops.hpp: addresses and sizes come in, are checked, and nothing is kept of them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "border.hpp"
#include "ops.hpp"
#include "program.hpp"

namespace nb = nanobind;
using namespace moe_local;

namespace {

constexpr int64_t MOST = INT32_MAX / 2;

void check(const char* name, uintptr_t address, int64_t bytes, int size, int64_t count) {
    if (!address || address % uintptr_t(size)) refuse(std::string(name) + ": a null or misaligned address");
    if (count < 1 || bytes / size < count)
        refuse(std::string(name) + ": " + std::to_string(bytes) + " bytes for " + std::to_string(count) + " numbers");
}

void check_counts(std::initializer_list<int64_t> counts) {
    int64_t product = 1;
    for (int64_t count : counts) {
        if (count < 1 || count > MOST) refuse("a size of " + std::to_string(count));
        product *= count;
        if (product > int64_t(1) << 40) refuse("sizes too large");
    }
}

const float* floats(const char* name, uintptr_t address, int64_t bytes, int64_t count) {
    if (!address) return nullptr;
    check(name, address, bytes, 4, count);
    return reinterpret_cast<const float*>(address);
}

int choice(const char* name, int value, int most) {
    if (value < 0 || value > most) refuse(std::string("no ") + name + " " + std::to_string(value));
    return value;
}

// out = one + other, numbers of one type, as torch adds them.
void add(int64_t count, int type, uintptr_t one, int64_t one_bytes, uintptr_t other, int64_t other_bytes,
         uintptr_t out, int64_t out_bytes) {
    const Numbers a = numbers("one", one, one_bytes, type, 1, count), b = numbers("other", other, other_bytes, type, 1, count);
    const Numbers sum = numbers("out", out, out_bytes, type, 1, count);
    nb::gil_scoped_release released;
    perform([=](const Now&) { add_numbers(a, b, sum); });
}

void norm(const Machine& machine, int rounding, float eps, int64_t rows, int64_t columns, int type, uintptr_t x,
          int64_t x_bytes, uintptr_t weight, int64_t weight_bytes, uintptr_t out, int64_t out_bytes) {
    choice("rounding", rounding, 2);
    const Numbers from = numbers("x", x, x_bytes, type, rows, columns);
    const Numbers to = numbers("out", out, out_bytes, type, rows, columns);
    const float* by = floats("weight", weight, weight_bytes, columns);
    nb::gil_scoped_release released;
    perform([=](const Now&) { rms_norm(machine, NormRounding(rounding), eps, from, by, to); });
}

Rotary rotary_of(int in, int out, int angles, bool rounds, bool last, int64_t size) {
    choice("pairs", in, 1);
    choice("pairs", out, 1);
    choice("pairs", angles, 2);
    if (size < 2 || size % 2 || size > MOST) refuse("a rotary embedding of " + std::to_string(size) + " numbers");
    return {Pairs(in), Pairs(out), Pairs(angles), rounds, last, int(size)};
}

void turn(const Machine& machine, const Rotary& rotary, int64_t batch, int64_t first, int64_t second, int64_t columns,
          bool by_first, uintptr_t x, int64_t x_bytes, int type, int64_t angles, uintptr_t cos, int64_t cos_bytes,
          uintptr_t sin, int64_t sin_bytes, int angles_type, uintptr_t out, int64_t out_bytes) {
    check_counts({batch, first, second, columns});
    if (columns < rotary.size) refuse("rows shorter than what of them is turned");
    const int64_t tokens = by_first ? first : second;
    if (angles != tokens && angles != batch * tokens) refuse("not an angle for each token");
    const int64_t width = rotary.angles == Pairs::shared ? rotary.size / 2 : rotary.size;
    const Numbers from = numbers("x", x, x_bytes, type, batch * first * second, columns);
    const Numbers to = numbers("out", out, out_bytes, type, batch * first * second, columns);
    const int64_t apart = cos_bytes / size_of(type_of(angles_type)) / angles;
    if (apart < width) refuse("cos: too few bytes");
    const Numbers by_cos = numbers("cos", cos, cos_bytes, angles_type, angles, apart);
    const Numbers by_sin = numbers("sin", sin, sin_bytes, angles_type, angles, apart);
    const RotaryShape shape{int(batch), int(first), int(second), int(columns), by_first};
    nb::gil_scoped_release released;
    perform([=](const Now&) { rotate(machine, rotary, shape, from, by_cos, by_sin, to); });
}

States states(const char* name, uintptr_t address, int64_t bytes, int64_t batch, int64_t heads, int64_t length,
              int64_t size, int64_t batch_step, int64_t head_step, int64_t step) {
    if (batch_step < 0 || head_step < 0 || step < 0 || std::max({batch_step, head_step, step}) > int64_t(1) << 40)
        refuse(std::string(name) + ": steps");
    check(name, address, bytes, 2, (batch - 1) * batch_step + (heads - 1) * head_step + (length - 1) * step + size);
    return {reinterpret_cast<const uint16_t*>(address), int(size), batch_step, head_step, step};
}

Mask mask_of(uintptr_t address, int64_t bytes, int type, int64_t batch, int64_t heads, int64_t length,
             int64_t batch_step, int64_t head_step) {
    if (!address) return {nullptr, 0, 0, 0};
    choice("type of masks", type, 2);
    if (batch_step < 0 || head_step < 0 || std::max(batch_step, head_step) > int64_t(1) << 40) refuse("mask: steps");
    check("mask", address, bytes, type == 2 ? 1 : size_of(Type(type)),
          (batch - 1) * batch_step + (heads - 1) * head_step + length);
    return {reinterpret_cast<const void*>(address), type, batch_step, head_step};
}

// Tokens that a cache has room for, by how far apart its heads are; 0 where it is not laid out as a buffer.
int64_t room_of(const States& states, int kv_heads) {
    const int64_t room = states.head_step / states.size;
    const bool whole = states.step == states.size && room * states.size == states.head_step;
    return whole && (kv_heads == 1 || states.batch_step == kv_heads * states.head_step) ? room : 0;
}

// The same in other memory, with room for other numbers of tokens.
States moved(States states, uintptr_t to, int kv_heads, int64_t room) {
    states.data = reinterpret_cast<const uint16_t*>(to);
    states.head_step = room * states.size;
    states.batch_step = kv_heads * states.head_step;
    return states;
}

void write_down(Program& program, const Machine& machine, const Attention& attention, uintptr_t query,
                const States& keys, const States& values, const Mask& mask, uintptr_t out) {
    const int heads = attention.kv_heads;
    const auto key = reinterpret_cast<uintptr_t>(keys.data), value = reinterpret_cast<uintptr_t>(values.data);
    const int64_t room = room_of(keys, heads);
    if (mask.data || attention.batch > 1 || !room || room != room_of(values, heads))
        return program.refuse("attention with a mask, of a batch, or over states that are not in a buffer");
    program.add([=](const Now& now) {
        if (attention.length + now.later < 1 || attention.length + now.later > now.now.room)
            refuse("more tokens than there is room for, or none");
        Attention later = attention;
        later.length += int(now.later);
        attend(machine, later, reinterpret_cast<const uint16_t*>(query), moved(keys, now.of(key), heads, now.now.room),
               moved(values, now.of(value), heads, now.now.room), mask, reinterpret_cast<uint16_t*>(out));
    }, key, room);
    program.add([](const Now&) {}, value, room);
}

void attend_one(const Machine& machine, int64_t batch, int64_t heads, int64_t kv_heads, int64_t length, int64_t size,
                int64_t value_size, float scale, uintptr_t query, int64_t query_bytes, uintptr_t key,
                int64_t key_bytes, int64_t key_batch, int64_t key_head, int64_t key_step, uintptr_t value,
                int64_t value_bytes, int64_t value_batch, int64_t value_head, int64_t value_step, uintptr_t mask,
                int64_t mask_bytes, int mask_type, int64_t mask_batch, int64_t mask_head, uintptr_t sinks,
                int64_t sinks_bytes, uintptr_t out, int64_t out_bytes) {
    check_counts({batch, heads, length, size});
    check_counts({kv_heads, value_size, batch});
    if (heads % kv_heads) refuse("heads that do not share keys evenly");
    check("query", query, query_bytes, 2, batch * heads * size);
    check("out", out, out_bytes, 2, batch * heads * value_size);
    const States keys = states("key", key, key_bytes, batch, kv_heads, length, size, key_batch, key_head, key_step);
    const States values =
        states("value", value, value_bytes, batch, kv_heads, length, value_size, value_batch, value_head, value_step);
    const Mask hidden = mask_of(mask, mask_bytes, mask_type, batch, heads, length, mask_batch, mask_head);
    const float* more = floats("sinks", sinks, sinks_bytes, heads);
    const Attention attention{int(batch), int(heads), int(kv_heads), int(length), scale, more};
    if (recording()) write_down(*recording(), machine, attention, query, keys, values, hidden, out);
    nb::gil_scoped_release released;
    attend(machine, attention, reinterpret_cast<const uint16_t*>(query), keys, values, hidden,
           reinterpret_cast<uint16_t*>(out));
}

void copy_rows(int64_t parts, int64_t room, int64_t at, int64_t row_bytes, uintptr_t from, uintptr_t to) {
    const auto* source = reinterpret_cast<const uint8_t*>(from);
    auto* target = reinterpret_cast<uint8_t*>(to);
    for (int64_t part = 0; part < parts; part++)
        std::memcpy(target + (part * room + at) * row_bytes, source + part * row_bytes, size_t(row_bytes));
}

// A row of each part of `from` to row `at` of the same part of `to`.
void append(int64_t parts, int64_t room, int64_t at, int64_t row_bytes, uintptr_t from, int64_t from_bytes,
            uintptr_t to, int64_t to_bytes) {
    check_counts({parts, room, row_bytes});
    if (at < 0 || at >= room) refuse("row " + std::to_string(at) + " of " + std::to_string(room));
    check("from", from, from_bytes, 1, parts * row_bytes);
    check("to", to, to_bytes, 1, parts * room * row_bytes);
    copy_rows(parts, room, at, row_bytes, from, to);
    if (!recording()) return;
    recording()->add([=](const Now& now) {
        if (at + now.later < 0 || at + now.later >= now.now.room)
            refuse("more tokens than there is room for, or fewer than none");
        copy_rows(parts, now.now.room, at + now.later, row_bytes, from, now.of(to));
    }, to, room);
}

Router router_of(int64_t choices, int scoring, int group_score, int64_t groups, int64_t groups_kept, bool sorted,
                 bool normalises, float epsilon, float scale, bool rounds) {
    check_counts({choices, groups, groups_kept});
    choice("scoring", scoring, 2);
    choice("score of groups", group_score, 2);
    if (groups_kept > groups) refuse("more groups kept than there are");
    return {int(choices), Scoring(scoring), GroupScore(group_score), int(groups), int(groups_kept), sorted, normalises,
            epsilon, scale, rounds, nullptr, nullptr};
}

void choose_experts(const Machine& machine, Router router, int64_t tokens, int64_t columns, int64_t experts,
                    uintptr_t x, int64_t x_bytes, int x_type, uintptr_t weight, int64_t weight_bytes, int weight_type,
                    uintptr_t logits_bias, int64_t logits_bias_bytes, uintptr_t bias, int64_t bias_bytes, uintptr_t logits, int64_t logits_bytes, int logits_type,
                    uintptr_t weights, int64_t weights_bytes, int weights_type, uintptr_t index, int64_t index_bytes) {
    const Numbers from = numbers("x", x, x_bytes, x_type, tokens, columns);
    const Numbers matrix = numbers("weight", weight, weight_bytes, weight_type, experts, columns);
    const Numbers scores = numbers("logits", logits, logits_bytes, logits_type, tokens, experts);
    const Numbers chosen = numbers("weights", weights, weights_bytes, weights_type, tokens, router.choices);
    check("index", index, index_bytes, 8, tokens * router.choices);
    if (router.choices > experts) refuse("more choices than experts");
    if (router.group_score != GroupScore::none) {
        const int least = router.group_score == GroupScore::two_best ? 2 : 1;
        if (experts % router.groups || experts / router.groups < least) refuse("groups that do not divide the experts");
    }
    router.logits_bias = floats("bias of logits", logits_bias, logits_bias_bytes, experts);
    router.bias = floats("bias", bias, bias_bytes, experts);
    nb::gil_scoped_release released;
    perform([=](const Now&) { route(machine, router, from, matrix, scores, chosen, reinterpret_cast<int64_t*>(index)); });
}

}  // namespace

void add_ops(nb::module_& m) {
    nb::class_<Rotary>(m, "Rotary")
        .def("__init__",
             [](Rotary* made, int in, int out, int angles, bool rounds, bool last, int64_t size) {
                 new (made) Rotary(rotary_of(in, out, angles, rounds, last, size));
             });
    nb::class_<Router>(m, "Router")
        .def("__init__",
             [](Router* made, int64_t choices, int scoring, int group_score, int64_t groups, int64_t groups_kept,
                bool sorted, bool normalises, float epsilon, float scale, bool rounds) {
                 new (made) Router(router_of(choices, scoring, group_score, groups, groups_kept, sorted, normalises,
                                             epsilon, scale, rounds));
             });
    nb::class_<Program>(m, "Program")
        .def(nb::init<>())
        .def("bind", [](Program& self, uintptr_t keys, uintptr_t values, int64_t room) {
            return self.bind({keys, values, room});
        })
        .def("run", [](const Program& self, int64_t later, uintptr_t keys, uintptr_t values, int64_t room) {
            if (room < 0) refuse("room below none");
            nb::gil_scoped_release released;
            self.run(later, {keys, values, room});
        })
        .def_prop_ro("unfit", &Program::unfit)
        .def("__len__", &Program::size);
    m.def("record", [](Program* program) { recording() = program; }, nb::arg("program").none());
    m.def("add", add);
    m.def("rms_norm", norm);
    m.def("rotate", turn);
    m.def("attend_one", attend_one);
    m.def("append", append);
    m.def("choose_experts", choose_experts);
}
