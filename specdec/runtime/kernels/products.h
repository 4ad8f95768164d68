// The products of a few rows with each other: what linear layers and attention are made of.
#pragma once

#include "lanes.h"

template <int R, int C, typename T>
inline void add_products(const T* x, int64_t x_step, const T* w, int64_t w_step, Lanes* sums) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Strip<T> left(x + r * x_step);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
      sums[r * C + c] = left.times(Strip<T>(w + c * w_step), sums[r * C + c]);
  }
}

// What is left behind the last whole strip.
template <int R, int C, typename T>
inline void add_rest(const T* x, int64_t x_step, const T* w, int64_t w_step, int64_t count,
                     Lanes* sums) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      sums[r * C + c] = Strip<T>(x + r * x_step, count)
                            .times(Strip<T>(w + c * w_step, count), sums[r * C + c]);
}

// How many times C rows ahead w is fetched into the second level of caches. By itself a processor
// looks ahead within rows only, and waits for memory half of the time.
constexpr int kAhead = 2;

template <int C, typename T>
inline void fetch_ahead(const T* w, int64_t w_step) {
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) __builtin_prefetch(w + (C * kAhead + c) * w_step, 0, 2);
}

// Multiplies R rows of x with C rows of w, `size` numbers each: lane r C + c is that of r and c.
// The `kFirst` products that need some rows of w fetch those that come behind them.
template <int R, int C, bool kFirst = false, typename T>
inline Lanes products(const T* x, int64_t x_step, const T* w, int64_t w_step, int64_t size) {
  static_assert(R * C == kLanes);
  constexpr int width = Strip<T>::kWidth;
  Lanes sums[kLanes] = {};
  int64_t k = 0;
  for (; k + width <= size; k += width) {
    if constexpr (kFirst) fetch_ahead<C>(w + k, w_step);
    add_products<R, C>(x + k, x_step, w + k, w_step, sums);
  }
  if (k < size) add_rest<R, C>(x + k, x_step, w + k, w_step, size - k, sums);
  return totals(sums);
}

template <typename T>
inline float product(const T* x, const T* w, int64_t size) {
  Lanes sum = {};
  for (int64_t k = 0; k < size; k += kLanes) {
    const int64_t count = size - k < kLanes ? size - k : kLanes;
    sum += load(x + k, count) * load(w + k, count);
  }
  float found = 0;
  for (int i = 0; i < kLanes; ++i) found += sum[i];
  return found;
}
