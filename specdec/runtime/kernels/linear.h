// y = x W^T + b for a few rows of x, with W as it lies: [N, K].
#pragma once

#include "products.h"

template <typename T>
struct Linear {
  const T *x, *weight, *bias;  // [M, K], [N, K], [N] or null
  T* y;                        // [M, N]
  int64_t num_rows, size, num_outputs;  // M, K, N

  void operator()() const {
    const int64_t strips = num_outputs / kLanes;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < strips; ++i) strip(i * kLanes);
    if (num_outputs >= kLanes && num_outputs % kLanes)
      strip(num_outputs - kLanes);  // some outputs once more, with the same result
    else
      for (int64_t n = strips * kLanes; n < num_outputs; ++n) single(n);
  }

  // kLanes outputs of all rows.
  void strip(int64_t n) const {
    int64_t m = 0;
    if (num_rows >= kRows) {
      rows<true>(m, n);
      for (m = kRows; m + kRows <= num_rows; m += kRows) rows<false>(m, n);
    }
    for (; m < num_rows; ++m) block<1, kLanes>(m, n);
  }

  // kLanes outputs of kRows rows.
  template <bool kFirst>
  void rows(int64_t m, int64_t n) const {
#pragma GCC unroll 1
    for (int c = 0; c < kLanes; c += kOutputs) block<kRows, kOutputs, kFirst>(m, n + c);
  }

  template <int R, int C, bool kFirst = false>
  void block(int64_t m, int64_t n) const {
    Lanes found = products<R, C, kFirst>(x + m * size, size, weight + n * size, size, size);
    if (bias) {
      const Lanes own = load(bias + n, C);
      for (int i = 0; i < kLanes; ++i) found[i] += own[i % C];
    }
    T rounded[kLanes];
    store(found, rounded);
    for (int r = 0; r < R; ++r)
      std::memcpy(y + (m + r) * num_outputs + n, rounded + r * C, C * sizeof(T));
  }

  void single(int64_t n) const {
    for (int64_t m = 0; m < num_rows; ++m) {
      const float found = product(x + m * size, weight + n * size, size);
      const Lanes added = broadcast(found) + (bias ? load(bias + n, 1) : Lanes{});
      store(added, y + m * num_outputs + n, 1);
    }
  }
};
