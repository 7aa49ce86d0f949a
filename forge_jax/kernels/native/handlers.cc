// What XLA calls. Shapes are checked here and nowhere else.
#include <bit>
#include <string>
#include <vector>

#include "attention.h"
#include "norm.h"
#include "rounded.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace forge {
namespace {

using Shape = ffi::Span<const int64_t>;

int64_t volume(Shape shape, size_t axes) {
  int64_t n = 1;
  for (size_t i = 0; i < axes; ++i) n *= shape[i];
  return n;
}

// Which matrix of `shape` [*lead, ., .] belongs to number `batch` of `lead`, where an axis of 1 stands for all.
int64_t matrix(Shape shape, Shape lead, int64_t batch) {
  int64_t at = 0, pitch = 1;
  for (int i = static_cast<int>(lead.size()) - 3; i >= 0; --i) {
    if (shape[i] != 1) at += pitch * (batch % lead[i]);
    pitch *= shape[i];
    batch /= lead[i];
  }
  return at;
}

using Matrices = ffi::Buffer<ffi::F32>;

// The parts of some weights [*lead, O, n] and what comes of them, y [*lead, ., .].
template <class Format>
struct Task {
  Operands p{};
  Shape shapes[Format::parts], lead;
  const uint8_t* data[Format::parts];
  int64_t size;

  // Takes the parts from number `at` of the arguments on; an error unless they are rows of p.inputs for p.outputs.
  ffi::Error take(const ffi::RemainingArgs& args, size_t at, ffi::Result<Matrices>& y) {
    lead = y->dimensions();
    const size_t rank = lead.size();
    p.y = y->typed_data(), size = lead[rank - 2] * lead[rank - 1];
    if (args.size() < at + Format::parts || p.inputs % Format::block)
      return ffi::Error::InvalidArgument("the parts of rows of whole blocks were expected");
    for (int i = 0; i < Format::parts; ++i) {
      const auto part = args.get<ffi::AnyBuffer>(at + i);
      if (part.has_error()) return part.error();
      shapes[i] = part->dimensions();
      data[i] = static_cast<const uint8_t*>(part->untyped_data());
      if (shapes[i].size() != rank || shapes[i][rank - 2] != p.outputs)
        return ffi::Error::InvalidArgument("part " + std::to_string(i) + " of the weights has not the rows of the product");
      p.pitch[i] = p.inputs / Format::block * Format::bytes[i];
      const int64_t itemsize = part->size_bytes() / std::max<int64_t>(1, part->element_count());
      const int64_t bytes = shapes[i][rank - 1] * itemsize, runs = p.inputs / RUN;
      if (!p.pitch[i] && itemsize == sizeof(float)) {  // a number a group
        const int64_t groups = shapes[i][rank - 1], of_group = groups && runs % groups == 0 ? runs / groups : 0;
        const int64_t inverse = of_group ? ((int64_t{1} << 32) + of_group - 1) / of_group : 0;
        if (inverse && runs < 1 << 16 && (!p.inverse || p.inverse == inverse)) p.pitch[i] = bytes, p.inverse = inverse;
      }
      if (bytes != p.pitch[i])
        return ffi::Error::InvalidArgument("part " + std::to_string(i) + " of the weights does not fit the product");
    }
    return ffi::Error::Success();
  }

  // What belongs to number `batch` of the leading axes.
  Operands at(int64_t batch) const {
    Operands here = p;
    here.y += batch * size;
    for (int i = 0; i < Format::parts; ++i) here.part[i] = data[i] + matrix(shapes[i], lead, batch) * p.outputs * p.pitch[i];
    return here;
  }
};

// x [*lead, R, K] and parts [*lead, O, n] of one weight after another to as many y [*lead, R, O]; a leading axis of what
// is read may be 1 instead. Rows lie in tiles of `together`.
template <class Format, int together, void (*run)(std::span<const Operands>)>
ffi::Error multiply(Matrices x, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Shape xs = x.dimensions();
  const size_t rank = xs.size(), count = rets.size();
  std::vector<Task<Format>> tasks(count);
  if (rank < 2 || !count || args.size() != count * Format::parts)
    return ffi::Error::InvalidArgument("a matrix and the parts of weights were expected");
  for (size_t i = 0; i < count; ++i) {
    auto y = rets.get<Matrices>(i);
    if (y.has_error()) return y.error();
    const Shape ys = (*y)->dimensions(), first = i ? tasks[0].lead : ys;
    bool fits = ys.size() == rank && ys[rank - 2] == xs[rank - 2] && ys[rank - 1] % together == 0;
    for (size_t axis = 0; fits && axis + 2 < rank; ++axis) fits = ys[axis] == first[axis];
    if (!fits) return ffi::Error::InvalidArgument("products of the same rows, in whole tiles, were expected");
    Operands& p = tasks[i].p;
    p.rows = xs[rank - 2], p.inputs = xs[rank - 1], p.outputs = ys[rank - 1];
    if (const ffi::Error error = tasks[i].take(args, i * Format::parts, *y); error.failure()) return error;
  }
  std::vector<Operands> all(count);
  const Shape lead = tasks[0].lead;
  for (int64_t batch = 0; batch < volume(lead, rank - 2); ++batch) {
    for (size_t i = 0; i < count; ++i) {
      all[i] = tasks[i].at(batch);
      all[i].x = x.typed_data() + matrix(xs, lead, batch) * xs[rank - 2] * xs[rank - 1];
    }
    run(all);
  }
  return ffi::Error::Success();
}

using Blocks = ffi::Buffer<ffi::F32, 3>;
using Numbers = ffi::Buffer<ffi::S32, 1>;
using Marks = ffi::Buffer<ffi::PRED, 1>;

// x [C, M, K], M a power of two, whose expert each block of M rows takes [C], whether it is used [C], and the parts
// [E, O, n] of one stack of weights after another to as many y [C, M, O], zero where a block is not used.
template <class Format, int together, void (*run)(std::span<const Operands>)>
ffi::Error multiply_chosen(Blocks x, Numbers expert, Marks used, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Shape xs = x.dimensions();
  const int64_t blocks = xs[0], rows = xs[1], inputs = xs[2];
  const size_t count = rets.size();
  std::vector<Task<Format>> tasks(count);
  bool fits = count && args.size() == count * Format::parts && rows > 0 && !(rows & (rows - 1));
  fits = fits && expert.dimensions()[0] == blocks && used.dimensions()[0] == blocks;
  for (size_t i = 0; fits && i < count; ++i) {
    auto y = rets.get<Matrices>(i);
    if (y.has_error()) return y.error();
    const Shape ys = (*y)->dimensions();
    fits = ys.size() == 3 && ys[0] == blocks && ys[1] == rows && ys[2] % together == 0;
    if (!fits) break;
    Operands& p = tasks[i].p;
    p.rows = rows, p.inputs = inputs, p.outputs = ys[2];
    if (const ffi::Error error = tasks[i].take(args, i * Format::parts, *y); error.failure()) return error;
    for (const Shape& shape : tasks[i].shapes) fits = fits && shape[0] == tasks[0].shapes[0][0] && shape[0] > 0;
  }
  if (!fits) return ffi::Error::InvalidArgument("blocks of rows, their experts and stacks of weights were expected");
  const int64_t experts = tasks[0].shapes[0][0];
  std::vector<Operands> all;
  for (int64_t block = 0; block < blocks; ++block)
    for (const Task<Format>& task : tasks) {
      Operands p = task.p;
      p.first = block * rows, p.x = x.typed_data() + p.first * inputs, p.y += p.first * p.outputs;
      const int64_t chosen = std::clamp<int64_t>(expert.typed_data()[block], 0, experts - 1);
      for (int i = 0; i < Format::parts; ++i) p.part[i] = task.data[i] + chosen * p.outputs * p.pitch[i];
      if (used.typed_data()[block])
        all.push_back(p);
      else
        std::fill_n(p.y, rows * p.outputs, 0.0f);
    }
  if (!all.empty()) run(all);
  return ffi::Error::Success();
}

using Vector = ffi::Buffer<ffi::F32, 1>;
using Queries = ffi::Buffer<ffi::F32, 4>;
using Scales = ffi::Buffer<ffi::BF16>;
using Mask = ffi::Buffer<ffi::PRED, 3>;
using Table = ffi::Buffer<ffi::S32, 2>;

// Numbers [P, K, page, *] with scales [P, K, page, groups] or [0] as a slab of heads of `size`.
ffi::ErrorOr<Slab> slab(const ffi::AnyBuffer& numbers, const Scales& scales, int64_t size) {
  const Shape shape = numbers.dimensions(), per = scales.dimensions();
  Slab s{Kind::F32, static_cast<const uint8_t*>(numbers.untyped_data()), nullptr, size, 0, 0};
  const int64_t share = shape.size() == 4 && shape[3] ? size / shape[3] : 0;  // features in what holds a number
  switch (numbers.element_type()) {
    case ffi::F32: s.kind = Kind::F32; break;
    case ffi::BF16: s.kind = Kind::BF16; break;
    case ffi::F16: s.kind = Kind::F16; break;
    case ffi::F8E4M3FN: s.kind = Kind::F8; break;
    case ffi::S8: s.kind = Kind::I8; break;
    case ffi::U8: s.kind = share == 4 ? Kind::I2 : Kind::I4; break;
    default: return ffi::Unexpected(ffi::Error::InvalidArgument("there is no kernel for numbers of this type"));
  }
  const bool shared = s.kind == Kind::I4 || s.kind == Kind::I2, coded = shared || s.kind == Kind::I8 || s.kind == Kind::F8;
  bool fits = share > 0 && shape[3] * share == size && (shared ? share % 2 == 0 && share <= 4 : share == 1);
  fits = fits && size / share % WIDTH == 0;
  if (coded && fits) {
    s.scales = reinterpret_cast<const uint16_t*>(scales.typed_data()), s.groups = per.size() == 4 ? per[3] : 0;
    for (int i = 0; i < 3 && s.groups; ++i) fits = fits && per[i] == shape[i];
    fits = fits && s.groups && size % s.groups == 0 && (shared || s.groups == 1);
    const uint64_t each = fits ? size / s.groups : 0;
    fits = fits && each % WIDTH == 0 && (s.groups == 1 || std::has_single_bit(each));
    s.shift = s.groups == 1 ? 63 : std::countr_zero(each);
  }
  if (!fits) return ffi::Unexpected(ffi::Error::InvalidArgument("numbers and scales of a cache do not fit each other"));
  return s;
}

// The first error among what was asked for.
template <class... Asked>
ffi::Error mistake(const Asked&... asked) {
  ffi::Error error = ffi::Error::Success();
  ((error.success() && asked.has_error() ? void(error = asked.error()) : void()), ...);
  return error;
}

// Some tokens from six arguments: keys and their scales, values and theirs, what is seen [B, T, S], the table of
// pages [B, entries] or [B, 0].
ffi::ErrorOr<Tokens> tokens(const ffi::RemainingArgs& args, size_t at, Attention& a) {
  const auto k = args.get<ffi::AnyBuffer>(at), v = args.get<ffi::AnyBuffer>(at + 2);
  const auto k_scale = args.get<Scales>(at + 1), v_scale = args.get<Scales>(at + 3);
  const auto seen = args.get<Mask>(at + 4);
  const auto table = args.get<Table>(at + 5);
  if (ffi::Error error = mistake(k, v, k_scale, v_scale, seen, table); error.failure()) return ffi::Unexpected(error);
  const auto keys = slab(*k, *k_scale, a.size), values = slab(*v, *v_scale, a.width);
  if (ffi::Error error = mistake(keys, values); error.failure()) return ffi::Unexpected(error);
  const Shape ks = k->dimensions(), vs = v->dimensions(), shown = seen->dimensions(), named = table->dimensions();
  const bool paged = named[1] != 0;
  bool fits = ks[0] == vs[0] && ks[1] == vs[1] && ks[2] == vs[2] && ks[0] > 0 && ks[2] > 0 && shown[0] == a.batch;
  fits = fits && (paged ? named[0] == a.batch : ks[0] == a.batch) && shown[2] == ks[2] * (paged ? named[1] : 1);
  fits = fits && shown[1] == a.tokens;
  fits = fits && (a.heads == 0 || a.heads == ks[1]);
  if (!fits) return ffi::Unexpected(ffi::Error::InvalidArgument("what is seen does not fit the keys and values"));
  a.heads = ks[1];
  return Tokens{*keys, *values, seen->typed_data(), paged ? table->typed_data() : nullptr, shown[2], ks[2], ks[0]};
}

// q [B, T, N, H], sinks [N] or [0], and the arguments of each part to y [B, T, N, W].
ffi::Error answer(Queries q, Vector sinks, ffi::RemainingArgs args, ffi::ResultBuffer<ffi::F32> y, float scale,
                  float softcap) {
  Attention a{};
  a.q = q.typed_data(), a.y = y->typed_data(), a.scale = scale, a.softcap = softcap;
  a.sinks = sinks.element_count() ? sinks.typed_data() : nullptr;
  const Shape qs = q.dimensions();
  a.batch = qs[0], a.tokens = qs[1], a.size = qs[3], a.width = y->dimensions().back();
  for (size_t i = 0; i + 5 < args.size(); i += 6) {
    const auto part = tokens(args, i, a);
    if (part.has_error()) return part.error();
    a.parts.push_back(*part);
  }
  if (a.parts.empty() || a.heads == 0 || qs[2] % a.heads)
    return ffi::Error::InvalidArgument("queries, keys and values do not fit each other");
  a.group = qs[2] / a.heads;
  attend(a);
  return ffi::Error::Success();
}

using Places = ffi::Buffer<ffi::S32, 2>;

// Parts [P, K, S, *], as many with new tokens [B, K, T, *], and their rows and slots [B, T]; the parts come back changed.
ffi::Error write(ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const size_t count = rets.size();
  if (args.size() != 2 * count + 2) return ffi::Error::InvalidArgument("parts and new tokens were expected");
  const auto rows = args.get<Places>(2 * count), slots = args.get<Places>(2 * count + 1);
  if (ffi::Error error = mistake(rows, slots); error.failure()) return error;
  for (size_t i = 0; i < count; ++i) {
    const auto old = args.get<ffi::AnyBuffer>(i), fresh = args.get<ffi::AnyBuffer>(count + i);
    auto out = rets.get<ffi::AnyBuffer>(i);
    if (ffi::Error error = mistake(old, fresh, out); error.failure()) return error;
    const Shape to = old->dimensions(), from = fresh->dimensions(), named = rows->dimensions();
    bool fits = to.size() == 4 && from.size() == 4 && to[1] == from[1] && to[3] == from[3];
    fits = fits && old->element_type() == fresh->element_type() && (*out)->size_bytes() == old->size_bytes();
    for (int axis : {0, 1}) fits = fits && named[axis] == from[2 * axis] && slots->dimensions()[axis] == named[axis];
    if (!fits) return ffi::Error::InvalidArgument("new tokens do not fit the slots of a cache");
    auto* const bytes = static_cast<uint8_t*>((*out)->untyped_data());
    if (bytes != old->untyped_data()) std::memcpy(bytes, old->untyped_data(), old->size_bytes());
    const auto* const tokens = static_cast<const uint8_t*>(fresh->untyped_data());
    const int64_t size = to[3] * (old->size_bytes() / std::max<int64_t>(1, old->element_count()));
    for (int64_t b = 0; b < from[0]; ++b)
      for (int64_t t = 0; t < from[2]; ++t) {
        const int64_t row = rows->typed_data()[b * from[2] + t], slot = slots->typed_data()[b * from[2] + t];
        if (row < 0 || row >= to[0] || slot < 0 || slot >= to[2]) continue;
        for (int64_t k = 0; k < to[1]; ++k)
          std::memcpy(bytes + ((row * to[1] + k) * to[2] + slot) * size, tokens + ((b * to[1] + k) * from[2] + t) * size, size);
      }
  }
  return ffi::Error::Success();
}

// Runs of `size` numbers, a power of two, times Sylvester's matrix and the scale.
ffi::Error turn(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y, int64_t size, float scale) {
  const int64_t count = x.element_count();
  if (size < 1 || size & (size - 1) || count % size || static_cast<int64_t>(y->element_count()) != count)
    return ffi::Error::InvalidArgument("runs of a power of two were expected");
  auto some = [&](int64_t from, int64_t to) {
    for (int64_t run = from; run < to; ++run) {
      float* const row = y->typed_data() + run * size;
      std::memcpy(row, x.typed_data() + run * size, size * sizeof(float));
      for (int64_t half = 1; half < size; half *= 2)
        for (int64_t i = 0; i < size; i += 2 * half)
          for (int64_t j = i; j < i + half; ++j) {
            const float a = row[j], b = row[j + half];
            row[j] = a + b, row[j + half] = a - b;
          }
      for (int64_t i = 0; i < size; ++i) row[i] *= scale;
    }
  };
  parallel(count / size, worth(count), some);
  return ffi::Error::Success();
}

// x [*lead, R, D] and scales [*lead, 1, D] to y [*lead, R, D]; a leading axis of what is read may be 1 instead.
ffi::Error norm(Matrices x, Matrices scale, ffi::Result<Matrices> y, float eps, float offset) {
  const Shape xs = x.dimensions(), scales = scale.dimensions(), lead = y->dimensions();
  const size_t rank = lead.size();
  if (rank < 2 || xs.size() != rank || scales.size() != rank || xs[rank - 2] != lead[rank - 2] ||
      scales[rank - 2] != 1 || xs[rank - 1] != lead[rank - 1] || scales[rank - 1] != lead[rank - 1])
    return ffi::Error::InvalidArgument("rows and a scale for each of their numbers were expected");
  const int64_t rows = lead[rank - 2], size = lead[rank - 1];
  for (int64_t batch = 0; batch < volume(lead, rank - 2); ++batch) {
    const float* const from = x.typed_data() + matrix(xs, lead, batch) * rows * size;
    const float* const own = scale.typed_data() + matrix(scales, lead, batch) * size;
    normalise(from, own, y->typed_data() + batch * rows * size, rows, size, eps, offset);
  }
  return ffi::Error::Success();
}

// y is x.
ffi::Error same(ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  if (x.size_bytes() != y->size_bytes()) return ffi::Error::InvalidArgument("as many bytes were expected");
  if (x.untyped_data() != y->untyped_data()) std::memcpy(y->untyped_data(), x.untyped_data(), x.size_bytes());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace forge

#define HANDLER(name, Format, together, run)                                                                               \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_##Format, (forge::multiply<forge::Format, together, forge::run<forge::Format>>),   \
                                ffi::Ffi::Bind().Arg<forge::Matrices>().RemainingArgs().RemainingRets());                 \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_chosen_##Format,                                                                    \
                                (forge::multiply_chosen<forge::Format, together, forge::run<forge::Format>>),              \
                                ffi::Ffi::Bind()                                                                           \
                                    .Arg<forge::Blocks>()                                                                  \
                                    .Arg<forge::Numbers>()                                                                 \
                                    .Arg<forge::Marks>()                                                                   \
                                    .RemainingArgs()                                                                       \
                                    .RemainingRets())

#define FORMAT(Format) HANDLER(product, Format, 1, product);
#define BOTH(Format) FORMAT(Format) HANDLER(rounded, Format, forge::TOGETHER, rounded_product);

FORMAT(BF16)
FORMAT(F16)
BOTH(IQ4_NL)
BOTH(IQ4_XS)
BOTH(MXFP4)
BOTH(Q4_0)
BOTH(Q4_1)
BOTH(Q4_K)
BOTH(Q5_0)
BOTH(Q5_1)
BOTH(Q5_K)
BOTH(Q6_K)
BOTH(Q8_0)
FORMAT(Stream4)
FORMAT(Signed8)
FORMAT(Unsigned8)
HANDLER(rounded, I4, forge::TOGETHER, rounded_product);
HANDLER(rounded, I4_ZERO, forge::TOGETHER, rounded_product);
HANDLER(rounded, I8, forge::TOGETHER, rounded_product);
HANDLER(rounded, I8_ZERO, forge::TOGETHER, rounded_product);

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention, forge::answer,
                              ffi::Ffi::Bind()
                                  .Arg<forge::Queries>()
                                  .Arg<forge::Vector>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(write_slots, forge::write, ffi::Ffi::Bind().RemainingArgs().RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(hadamard, forge::turn,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("size")
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(norm, forge::norm,
                              ffi::Ffi::Bind()
                                  .Arg<forge::Matrices>()
                                  .Arg<forge::Matrices>()
                                  .Ret<forge::Matrices>()
                                  .Attr<float>("eps")
                                  .Attr<float>("offset"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(once, forge::same, ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

extern "C" {

int forge_threads() { return forge::threads(); }

const char* forge_instructions() { return forge::INSTRUCTIONS; }
}
