// What Python sees of these kernels: operators of torch, for float32 and bfloat16 on processors.
#include <array>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "attention.h"
#include "linear.h"

using torch::stable::Tensor;

// Kernels read numbers that are neighbours: all of a vector or a matrix, else those of each cell.
Tensor dense(const Tensor& given) {
  const bool whole = given.dim() < 4 ? given.is_contiguous() : given.stride(3) == 1;
  return whole ? given : torch::stable::contiguous(given);
}

// The types that there are kernels for.
bool is_float(const Tensor& given) {
  using torch::headeronly::ScalarType;
  const bool found = given.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(found || given.scalar_type() == ScalarType::BFloat16,
                  "expected float32 or bfloat16");
  return found;
}

bool alike(const Tensor& one, const Tensor& other) {
  return one.scalar_type() == other.scalar_type();
}

constexpr int64_t kThin = 48;  // rows; libraries multiply more of them faster

Tensor by_library(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename T>
const T* numbers(const Tensor& of) {
  return static_cast<const T*>(of.data_ptr());
}

template <typename T>
void linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, Tensor& y) {
  Linear<T>{numbers<T>(x),
            numbers<T>(weight),
            bias ? numbers<T>(*bias) : nullptr,
            static_cast<T*>(y.data_ptr()),
            x.size(0),
            x.size(1),
            weight.size(0)}();
}

Tensor thin_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.size(1) == weight.size(1) && alike(x, weight), "x and weight do not fit");
  const bool fits = !bias || (alike(x, *bias) && bias->numel() == weight.size(0));
  STD_TORCH_CHECK(fits, "bias does not fit");
  if (x.size(0) > kThin) return by_library(x, weight, bias);
  Tensor y = torch::stable::new_empty(x, {x.size(0), weight.size(0)});
  const Tensor rows = dense(x), whole = dense(weight);
  const std::optional<Tensor> added = bias ? std::optional<Tensor>(dense(*bias)) : std::nullopt;
  is_float(x) ? linear<float>(rows, whole, added, y) : linear<BFloat16>(rows, whole, added, y);
  return y;
}

template <typename T>
View<T> view(const Tensor& of) {
  return {static_cast<T*>(of.data_ptr()), of.stride(0), of.stride(1), of.stride(2)};
}

template <typename T>
void attend(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask,
            double scale, Tensor& found) {
  View<T> by_head = view<T>(found);
  std::swap(by_head.head, by_head.cell);
  Attention<T>{view<const T>(query), view<const T>(key), view<const T>(value),
               view<const T>(mask),  by_head,            query.size(0),
               query.size(1),        key.size(1),        mask.size(1),
               query.size(2),        key.size(2),        query.size(3),
               value.size(3),        static_cast<float>(scale)}();
}

Tensor thin_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                      const Tensor& mask, double scale) {
  STD_TORCH_CHECK(alike(query, key) && alike(query, value) && alike(query, mask), "types differ");
  const bool fit = key.size(0) == query.size(0) && value.size(0) == query.size(0) &&
                   mask.size(0) == query.size(0) && query.size(1) % key.size(1) == 0 &&
                   value.size(1) == key.size(1) && mask.size(2) == query.size(2) &&
                   value.size(2) == key.size(2) && mask.size(3) == key.size(2) &&
                   query.size(3) == key.size(3) &&
                   (mask.size(1) == 1 || mask.size(1) == query.size(1));
  STD_TORCH_CHECK(fit, "the sizes of queries, keys, values and mask do not fit");
  Tensor found = torch::stable::new_empty(
      query, {query.size(0), query.size(2), query.size(1), value.size(3)});
  const Tensor q = dense(query), k = dense(key), v = dense(value), m = dense(mask);
  is_float(q) ? attend<float>(q, k, v, m, scale, found)
              : attend<BFloat16>(q, k, v, m, scale, found);
  return found;
}

STABLE_TORCH_LIBRARY(specdec, m) {
  m.def("thin_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "thin_attention(Tensor query, Tensor key, Tensor value, Tensor mask, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, m) {
  m.impl("thin_linear", TORCH_BOX(&thin_linear));
  m.impl("thin_attention", TORCH_BOX(&thin_attention));
}
