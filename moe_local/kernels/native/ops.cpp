#include "ops.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "team.hpp"

namespace moe_local {
namespace {

constexpr int64_t SMALL = 1 << 16;  // numbers: not worth a second thread

int threads_for(const Machine& machine, int64_t numbers) { return numbers <= SMALL ? 1 : machine.threads; }

// Body is called with runs of neighbouring rows.
template <class Body>
void for_rows(int threads, int rows, const Body& body) {
    const int tasks = threads == 1 ? 1 : std::min(rows, 4 * threads);
    for_each(threads, tasks, [&](int task) {
        const int end = int(int64_t(rows) * (task + 1) / tasks);
        for (int row = int(int64_t(rows) * task / tasks); row < end; row++) body(row);
    });
}

// The two numbers of pair `at`.
std::pair<int, int> pair_of(Pairs pairs, int at, int half) {
    if (pairs == Pairs::halves) return {at, at + half};
    if (pairs == Pairs::shared) return {at, at};
    return {2 * at, 2 * at + 1};
}

void rotate_pairs(const Rotary& rotary, const uint8_t* x, Type type, const void* cos, const void* sin, Type angles,
                  uint8_t* out) {
    const int half = rotary.size / 2;
    const auto round = [&](float value) { return rotary.rounds ? from_bf16(to_bf16(value)) : value; };
    for (int i = 0; i < half; i++) {
        const auto from = pair_of(rotary.in, i, half), to = pair_of(rotary.out, i, half);
        const auto angle = pair_of(rotary.angles, i, half);
        const float a = read_number(x, type, from.first), b = read_number(x, type, from.second);
        const float first = round(a * read_number(cos, angles, angle.first)) - round(b * read_number(sin, angles, angle.first));
        const float second = round(b * read_number(cos, angles, angle.second)) + round(a * read_number(sin, angles, angle.second));
        write_number(first, type, out, to.first);
        write_number(second, type, out, to.second);
    }
}

void rotate_row(const Processor& processor, const Rotary& rotary, int columns, const uint8_t* x, Type type,
                const void* cos, const void* sin, Type angles, uint8_t* out) {
    const size_t size = size_t(size_of(type));
    const int begin = rotary.last ? columns - rotary.size : 0, half = rotary.size / 2;
    std::memcpy(out, x, size * size_t(begin));
    std::memcpy(out + size * size_t(begin + rotary.size), x + size * size_t(begin + rotary.size),
                size * size_t(columns - begin - rotary.size));
    x += size * size_t(begin);
    out += size * size_t(begin);
    if (rotary.in == Pairs::halves && rotary.out == Pairs::halves && rotary.angles != Pairs::neighbours)
        processor.rotate_halves(x, type, cos, sin, angles, half, rotary.angles == Pairs::shared ? 0 : half,
                                rotary.rounds, out);
    else
        rotate_pairs(rotary, x, type, cos, sin, angles, out);
}

void hide(const Mask& mask, int batch, int head, int length, float* scores) {
    if (!mask.data) return;
    const int64_t begin = batch * mask.batch_step + head * mask.head_step;
    if (mask.type == 2) {
        const bool* seen = static_cast<const bool*>(mask.data) + begin;
        // Not minus infinity: a query that may see nothing is padding, and must not become NaN.
        for (int i = 0; i < length; i++)
            if (!seen[i]) scores[i] = std::numeric_limits<float>::lowest();
    } else if (mask.type == int(Type::float32)) {
        const float* added = static_cast<const float*>(mask.data) + begin;
        for (int i = 0; i < length; i++) scores[i] += added[i];
    } else {
        const uint16_t* added = static_cast<const uint16_t*>(mask.data) + begin;
        for (int i = 0; i < length; i++) scores[i] += from_bf16(added[i]);
    }
}

// A few heads that share keys: the sums go over the keys in their order, so what is hidden changes no bit of them.
void attend_heads(const Processor& processor, const Attention& attention, const uint16_t* query, const States& keys,
                  const States& values, const Mask& mask, int batch, int head, int count, uint16_t* out) {
    const int length = attention.length, group = head / (attention.heads / attention.kv_heads);
    std::vector<float> room(size_t(count) * (size_t(length) + size_t(keys.size) + size_t(values.size)));
    float* scores = room.data();
    float* wide = scores + size_t(count) * size_t(length);
    float* sums = wide + size_t(count) * size_t(keys.size);
    const uint16_t* own = query + (int64_t(batch) * attention.heads + head) * keys.size;
    for (int c = 0; c < count * keys.size; c++) wide[c] = from_bf16(own[c]);
    processor.dots(wide, count, keys.size, keys.row(batch, group, 0), Type::bfloat16, keys.step, length, keys.size,
                   scores, length);
    std::vector<float> totals(size_t(count), 0.0f), greatest(size_t(count), 0.0f);
    for (int i = 0; i < count; i++) {
        float* row = scores + int64_t(i) * length;
        for (int k = 0; k < length; k++) row[k] *= attention.scale;
        hide(mask, batch, head + i, length, row);
        greatest[size_t(i)] = processor.exponentials(row, length);
    }
    for (int k = 0; k < length; k++)
        for (int i = 0; i < count; i++) totals[size_t(i)] += scores[int64_t(i) * length + k];
    processor.weighted_rows(scores, count, length, values.row(batch, group, 0), values.step, length, values.size, sums,
                            values.size);
    for (int i = 0; i < count; i++) {
        uint16_t* to = out + (int64_t(batch) * attention.heads + head + i) * values.size;
        if (attention.sinks) totals[size_t(i)] += std::exp(attention.sinks[head + i] - greatest[size_t(i)]);
        for (int c = 0; c < values.size; c++) to[c] = to_bf16(sums[i * values.size + c] / totals[size_t(i)]);
    }
}

using Scored = std::pair<float, int>;

// The best, and among equals the same ones and in the same order, as torch.topk has them: by the same algorithms.
void choose_best(std::vector<Scored>& queue, int choices, bool sorted) {
    const auto better = [](const Scored& a, const Scored& b) {
        return (std::isnan(a.first) && !std::isnan(b.first)) || a.first > b.first;
    };
    if (int64_t(choices) * 64 <= int64_t(queue.size())) {
        std::partial_sort(queue.begin(), queue.begin() + choices, queue.end(), better);
        return;
    }
    std::nth_element(queue.begin(), queue.begin() + (choices - 1), queue.end(), better);
    if (sorted) std::sort(queue.begin(), queue.begin() + (choices - 1), better);
}

void queue_up(const float* scores, int count, std::vector<Scored>& queue) {
    queue.resize(size_t(count));
    for (int i = 0; i < count; i++) queue[size_t(i)] = {scores[i], i};
}

void drop_groups(const Router& router, int experts, float* scores, std::vector<Scored>& queue) {
    const int size = experts / router.groups;
    std::vector<float> of_groups(size_t(router.groups));
    for (int g = 0; g < router.groups; g++) {
        queue_up(scores + g * size, size, queue);
        const int counted = router.group_score == GroupScore::two_best ? 2 : 1;
        std::partial_sort(queue.begin(), queue.begin() + counted, queue.end(),
                          [](const Scored& a, const Scored& b) { return a.first > b.first; });
        of_groups[size_t(g)] = counted == 2 ? queue[0].first + queue[1].first : queue[0].first;
    }
    queue_up(of_groups.data(), router.groups, queue);
    choose_best(queue, router.groups_kept, false);
    std::vector<char> kept(size_t(router.groups));
    for (int i = 0; i < router.groups_kept; i++) kept[size_t(queue[size_t(i)].second)] = 1;
    for (int e = 0; e < experts; e++)
        if (!kept[size_t(e / size)]) scores[e] = router.scoring == Scoring::sigmoid ? -HUGE_VALF : 0;
}

void normalise(float* values, int count, float epsilon) {
    float sum = 0;
    for (int i = 0; i < count; i++) sum += values[i];
    for (int i = 0; i < count; i++) values[i] /= sum + epsilon;
}

void route_token(const Processor& processor, const Router& router, int experts, float* scores, Type type,
                 uint8_t* weights, int64_t* index) {
    if (router.scoring == Scoring::softmax) {
        processor.exponentials(scores, experts);
        normalise(scores, experts, 0);
    } else if (router.scoring == Scoring::sigmoid) {
        processor.sigmoids(scores, experts);
    }
    std::vector<Scored> queue;
    std::vector<float> wanted(scores, scores + experts);
    if (router.bias)
        for (int e = 0; e < experts; e++) wanted[size_t(e)] += router.bias[e];
    if (router.group_score != GroupScore::none) drop_groups(router, experts, wanted.data(), queue);
    queue_up(wanted.data(), experts, queue);
    choose_best(queue, router.choices, router.sorted);
    std::vector<float> chosen(size_t(router.choices));
    for (int i = 0; i < router.choices; i++) {
        index[i] = queue[size_t(i)].second;
        chosen[size_t(i)] = scores[index[i]];
    }
    if (router.scoring == Scoring::softmax_of_chosen) {
        processor.exponentials(chosen.data(), router.choices);
        normalise(chosen.data(), router.choices, 0);
    }
    if (router.normalises) normalise(chosen.data(), router.choices, router.epsilon);
    for (int i = 0; i < router.choices; i++) write_number(chosen[size_t(i)] * router.scale, type, weights, i);
}

}  // namespace

void rms_norm(const Machine& machine, NormRounding rounding, float eps, const Numbers& x, const float* weight,
              const Numbers& out) {
    for_rows(threads_for(machine, int64_t(x.rows) * x.columns), x.rows, [&](int row) {
        machine.processor->norm_row(x.row(row), x.type, weight, x.columns, eps, int(rounding), out.row(row));
    });
}

void rotate(const Machine& machine, const Rotary& rotary, const RotaryShape& shape, const Numbers& x,
            const Numbers& cos, const Numbers& sin, const Numbers& out) {
    const int angles = shape.by_first ? shape.first : shape.second;
    const bool each = cos.rows > angles;  // row of the batch
    for_rows(threads_for(machine, int64_t(x.rows) * x.columns), x.rows, [&](int row) {
        const int batch = row / (shape.first * shape.second);
        const int at = shape.by_first ? row / shape.second % shape.first : row % shape.second;
        const int angle = (each ? batch * angles : 0) + at;
        rotate_row(*machine.processor, rotary, shape.columns, x.row(row), x.type, cos.row(angle), sin.row(angle),
                   cos.type, out.row(row));
    });
}

void attend(const Machine& machine, const Attention& attention, const uint16_t* query, const States& keys,
            const States& values, const Mask& mask, uint16_t* out) {
    constexpr int MOST = 4;  // heads in a task
    const int shared = attention.heads / attention.kv_heads, blocks = (shared + MOST - 1) / MOST;
    const int64_t work = int64_t(attention.batch) * attention.heads * attention.length * keys.size / 8;
    const int tasks = attention.batch * attention.kv_heads * blocks;
    for_each(threads_for(machine, work), tasks, [&](int task) {
        const int first = task % blocks * MOST, group = task / blocks % attention.kv_heads;
        attend_heads(*machine.processor, attention, query, keys, values, mask, task / blocks / attention.kv_heads,
                     group * shared + first, std::min(MOST, shared - first), out);
    });
}

void add_numbers(const Numbers& one, const Numbers& other, const Numbers& out) {
    const int count = one.columns;
    if (one.type == Type::float32) {
        const auto *a = static_cast<const float*>(one.data), *b = static_cast<const float*>(other.data);
        for (int i = 0; i < count; i++) static_cast<float*>(out.data)[i] = a[i] + b[i];
        return;
    }
    const auto *a = static_cast<const uint16_t*>(one.data), *b = static_cast<const uint16_t*>(other.data);
    for (int i = 0; i < count; i++) static_cast<uint16_t*>(out.data)[i] = to_bf16(from_bf16(a[i]) + from_bf16(b[i]));
}

void route(const Machine& machine, const Router& router, const Numbers& x, const Numbers& weight,
           const Numbers& logits, const Numbers& weights, int64_t* index) {
    const int experts = weight.rows, blocks = (experts + BLOCK - 1) / BLOCK;
    const int threads = threads_for(machine, int64_t(x.rows) * experts * x.columns / 4);
    for_rows(x.rows > 1 ? threads : 1, x.rows, [&](int row) {
        std::vector<float> scores(size_t(experts) + size_t(x.columns));
        float* wide = scores.data() + experts;
        for (int c = 0; c < x.columns; c++) wide[c] = read_number(x.row(row), x.type, c);
        for_rows(x.rows > 1 ? 1 : threads, blocks, [&](int block) {
            const int first = block * BLOCK, count = std::min(BLOCK, experts - first);
            machine.processor->dots(wide, 1, x.columns, weight.row(first), weight.type, weight.columns, count,
                                    x.columns, scores.data() + first, experts);
        });
        for (int e = 0; e < experts; e++) {
            float& score = scores[size_t(e)];
            if (router.logits_bias) score += router.logits_bias[e];
            if (router.rounds) score = from_bf16(to_bf16(score));
            write_number(score, logits.type, logits.row(row), e);
        }
        route_token(*machine.processor, router, experts, scores.data(), weights.type, weights.row(row),
                    index + int64_t(row) * router.choices);
    });
}

}  // namespace moe_local
