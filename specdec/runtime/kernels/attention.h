// Attention of a few queries: softmax(scale q k^T + mask) v, computed in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "products.h"

// A tensor [rows, heads, cells, numbers] whose numbers are neighbours.
template <typename T>
struct View {
  T* start;
  int64_t row, head, cell;  // strides
  T* at(int64_t r, int64_t h, int64_t c = 0) const {
    return start + r * row + h * head + c * cell;
  }
};

template <typename T>
struct Attention {
  View<const T> query, key, value, mask;
  View<T> found;
  int64_t size, heads, key_heads, mask_heads, num_new, length, dim, value_dim;
  float scale;

  // The heads of a group see the same keys, so that their queries are the rows of one product.
  int64_t queries_per_key_head() const { return heads / key_heads * num_new; }
  int64_t padded() const { return (length + kLanes - 1) / kLanes * kLanes; }

  void operator()() const { queries_per_key_head() == 1 ? by_chunks<1>() : by_chunks<kRows>(); }

  template <int R>
  void by_chunks() const {
    const int64_t chunks = (queries_per_key_head() + R - 1) / R;
#pragma omp parallel
    {
      Chunk<R> chunk(*this);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < size * key_heads * chunks; ++i)
        chunk.run(i / chunks / key_heads, i / chunks % key_heads, i % chunks * R);
    }
  }

  // R queries of one row and one head of keys; behind the last one it is repeated.
  template <int R>
  struct Chunk {
    static constexpr int kKeys = kLanes / R;  // whose scores are computed at once
    const Attention& of;
    std::vector<T> queries;
    std::vector<float> scores;
    const T *keys, *values, *masks[R];
    T* results[R];
    float sums[R];

    explicit Chunk(const Attention& of)
        : of(of), queries(R * of.dim), scores(R * of.padded()) {}

    void run(int64_t row, int64_t key_head, int64_t first) {
      gather(row, key_head, first);
      multiply();
      for (int r = 0; r < R; ++r) sums[r] = weigh(scores.data() + r * of.padded(), masks[r]);
      constexpr int several = kOutputs * kLanes;
      int64_t d = 0;
      for (; d + several <= of.value_dim; d += several) mix<kOutputs>(d, several);
      for (; d < of.value_dim; d += kLanes)
        mix<1>(d, std::min<int64_t>(kLanes, of.value_dim - d));
    }

    void gather(int64_t row, int64_t key_head, int64_t first) {
      keys = of.key.at(row, key_head);
      values = of.value.at(row, key_head);
      for (int r = 0; r < R; ++r) {
        const int64_t own = std::min(first + r, of.queries_per_key_head() - 1);
        const int64_t head = key_head * (of.heads / of.key_heads) + own / of.num_new;
        const int64_t cell = own % of.num_new;
        std::copy_n(of.query.at(row, head, cell), of.dim, queries.data() + r * of.dim);
        masks[r] = of.mask.at(row, of.mask_heads == 1 ? 0 : head, cell);
        results[r] = of.found.at(row, head, cell);
      }
    }

    void multiply() {
      int64_t s = 0;
      for (; s + kKeys <= of.length; s += kKeys) score(s);
      if (s == of.length) return;
      if (of.length >= kKeys) return score(of.length - kKeys);
      for (; s < of.length; ++s)
        for (int r = 0; r < R; ++r)
          scores[r * of.padded() + s] =
              of.scale * product(queries.data() + r * of.dim, keys + s * of.key.cell, of.dim);
    }

    void score(int64_t s) {
      const Lanes each = of.scale * products<R, kKeys>(queries.data(), of.dim,
                                                    keys + s * of.key.cell, of.key.cell, of.dim);
      for (int i = 0; i < kLanes; ++i)
        scores[i / kKeys * of.padded() + s + i % kKeys] = each[i];
    }

    // Turns scores into weights; returns what they are to be divided by.
    float weigh(float* own, const T* mask) const {
      Lanes top = broadcast(-INFINITY), sum = {};
      int64_t s = 0;
      for (; s + kLanes <= of.length; s += kLanes) {
        const Lanes each = load(own + s) + load(mask + s);
        store(each, own + s);
        top = each > top ? each : top;
      }
      if (s < of.length) {
        const int64_t count = of.length - s;
        Lanes each = load(own + s, count) + load(mask + s, count);
        for (int i = count; i < kLanes; ++i) each[i] = -INFINITY;
        store(each, own + s);
        top = each > top ? each : top;
      }
      float highest = top[0];
      for (int i = 1; i < kLanes; ++i) highest = std::max(highest, top[i]);
      for (s = 0; s < of.length; s += kLanes) {
        const Lanes each = exponential(load(own + s) - highest);
        store(each, own + s);
        sum += each;
      }
      float found = 0;
      for (int i = 0; i < kLanes; ++i) found += sum[i];
      return found;
    }

    // `count` neighbouring numbers of the weighted values.
    template <int C>
    void mix(int64_t d, int64_t count) const {
      Lanes mixed[R][C] = {};
      const int64_t last = count - (C - 1) * kLanes;  // numbers of the last vector
      const bool whole = last == kLanes;
      for (int64_t s = 0; s < of.length; ++s) {
        const T* at = values + s * of.value.cell + d;
        Lanes each[C];
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c)
          each[c] = C > 1 || whole ? load(at + c * kLanes) : load(at, last);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const float weight = scores[r * of.padded() + s];
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) mixed[r][c] += each[c] * weight;
        }
      }
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
          store(mixed[r][c] / sums[r], results[r] + d + c * kLanes, C > 1 ? kLanes : last);
    }
  };
};
