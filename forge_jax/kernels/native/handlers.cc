// What XLA calls. Shapes are checked here and nowhere else.
#include <string>

#include "attention.h"
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

// Where the parts of the weights lie; an error unless they are rows of p.inputs for p.outputs.
template <class Format>
ffi::Error take(const ffi::RemainingArgs& args, size_t rank, Operands& p, Shape* shapes, const uint8_t** data) {
  if (args.size() != Format::parts || p.inputs % Format::block)
    return ffi::Error::InvalidArgument("the parts of rows of whole blocks were expected");
  for (int i = 0; i < Format::parts; ++i) {
    const auto part = args.get<ffi::AnyBuffer>(i);
    if (part.has_error()) return part.error();
    shapes[i] = part->dimensions();
    data[i] = static_cast<const uint8_t*>(part->untyped_data());
    if (shapes[i].size() != rank || shapes[i][rank - 2] != p.outputs)
      return ffi::Error::InvalidArgument("part " + std::to_string(i) + " of the weights has not the rows of the product");
    p.pitch[i] = p.inputs / Format::block * Format::bytes[i];
    const int64_t itemsize = part->size_bytes() / std::max<int64_t>(1, part->element_count());
    const int64_t size = shapes[i][rank - 1] * itemsize, runs = p.inputs / RUN;
    if (!p.pitch[i] && itemsize == sizeof(float)) {  // a number a group
      const int64_t groups = shapes[i][rank - 1], of_group = groups && runs % groups == 0 ? runs / groups : 0;
      const int64_t inverse = of_group ? ((int64_t{1} << 32) + of_group - 1) / of_group : 0;
      if (inverse && runs < 1 << 16 && (!p.inverse || p.inverse == inverse)) p.pitch[i] = size, p.inverse = inverse;
    }
    if (size != p.pitch[i])
      return ffi::Error::InvalidArgument("part " + std::to_string(i) + " of the weights does not fit the product");
  }
  return ffi::Error::Success();
}

// Calls run(p, number) for every matrix of y [*lead, ., .], with its parts [*lead, O, n] and its place in y.
template <class Format, class Run>
ffi::Error each(const ffi::RemainingArgs& args, ffi::ResultBuffer<ffi::F32>& y, Operands p, Run run) {
  const Shape ys = y->dimensions();
  const size_t rank = ys.size();
  Shape shapes[Format::parts];
  const uint8_t* data[Format::parts];
  if (const ffi::Error error = take<Format>(args, rank, p, shapes, data); error.failure()) return error;
  for (int64_t batch = 0; batch < volume(ys, rank - 2); ++batch) {
    p.y = y->typed_data() + batch * ys[rank - 2] * ys[rank - 1];
    for (int i = 0; i < Format::parts; ++i)
      p.part[i] = data[i] + matrix(shapes[i], ys, batch) * p.outputs * p.pitch[i];
    run(p, batch);
  }
  return ffi::Error::Success();
}

// x [*lead, R, K] and parts [*lead, O, n] to y [*lead, R, O]; a leading axis of what is read may be 1 instead. Rows lie
// in tiles of `together`.
template <class Format, int together, void (*run)(const Operands&)>
ffi::Error multiply(ffi::Buffer<ffi::F32> x, ffi::RemainingArgs args, ffi::ResultBuffer<ffi::F32> y) {
  const Shape xs = x.dimensions(), ys = y->dimensions();
  const size_t rank = xs.size();
  if (rank < 2 || ys.size() != rank) return ffi::Error::InvalidArgument("a product of matrices was expected");
  Operands p{};
  p.rows = xs[rank - 2], p.inputs = xs[rank - 1], p.outputs = ys[rank - 1];
  if (p.outputs % together) return ffi::Error::InvalidArgument("whole tiles of rows were expected");
  return each<Format>(args, y, p, [&](Operands& p, int64_t batch) {
    p.x = x.typed_data() + matrix(xs, ys, batch) * p.rows * p.inputs;
    run(p);
  });
}

// Parts [*lead, O, n] to y [*lead, O, K].
template <class Format>
ffi::Error decode(ffi::RemainingArgs args, ffi::ResultBuffer<ffi::F32> y) {
  const Shape ys = y->dimensions();
  const size_t rank = ys.size();
  if (rank < 2) return ffi::Error::InvalidArgument("a matrix was expected");
  Operands p{};
  p.outputs = ys[rank - 2], p.inputs = ys[rank - 1];
  return each<Format>(args, y, p, [](Operands& p, int64_t) { open<Format>(p); });
}

using Vector = ffi::Buffer<ffi::F32, 1>;
using Queries = ffi::Buffer<ffi::F32, 3>;
using Slab = ffi::Buffer<ffi::F32, 4>;
using Mask = ffi::Buffer<ffi::PRED, 2>;

// q [B, N, H], sinks [N] or [0], and for each part k [B, K, S, H], v [B, K, S, W], seen [B, S] to y [B, N, W].
ffi::Error answer(Queries q, Vector sinks, ffi::RemainingArgs args, ffi::ResultBuffer<ffi::F32> y, float scale,
                  float softcap) {
  Attention a{};
  a.q = q.typed_data(), a.y = y->typed_data(), a.scale = scale, a.softcap = softcap;
  a.sinks = sinks.element_count() ? sinks.typed_data() : nullptr;
  a.batch = q.dimensions()[0], a.size = q.dimensions()[2], a.width = y->dimensions().back();
  for (size_t i = 0; i + 2 < args.size(); i += 3) {
    const auto k = args.get<Slab>(i), v = args.get<Slab>(i + 1);
    const auto seen = args.get<Mask>(i + 2);
    if (k.has_error()) return k.error();
    if (v.has_error()) return v.error();
    if (seen.has_error()) return seen.error();
    a.heads = k->dimensions()[1];
    a.parts.push_back({k->typed_data(), v->typed_data(), seen->typed_data(), k->dimensions()[2]});
  }
  if (a.parts.empty() || q.dimensions()[1] % a.heads || a.size % WIDTH || a.width % WIDTH)
    return ffi::Error::InvalidArgument("queries, keys and values do not fit each other");
  a.group = q.dimensions()[1] / a.heads;
  attend(a);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace forge

#define HANDLER(name, Format, together, run)                                                                               \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_##Format, (forge::multiply<forge::Format, together, forge::run<forge::Format>>),   \
                                ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().RemainingArgs().Ret<ffi::Buffer<ffi::F32>>())

#define FORMAT(Format)                                                      \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(open_##Format, forge::decode<forge::Format>, \
                                ffi::Ffi::Bind().RemainingArgs().Ret<ffi::Buffer<ffi::F32>>()); \
  HANDLER(product, Format, 1, product);
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

extern "C" {

int forge_threads() { return forge::threads(); }

const char* forge_instructions() { return forge::INSTRUCTIONS; }
}
