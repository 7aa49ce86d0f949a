// What XLA calls. Shapes are checked here and nowhere else.
#include <string>

#include "product.h"
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

// x [*lead, R, K] and parts [*lead, O, n] to y [*lead, R, O]; a leading axis of what is read may be 1 instead.
template <class Format>
ffi::Error multiply(ffi::Buffer<ffi::F32> x, ffi::RemainingArgs args, ffi::ResultBuffer<ffi::F32> y) {
  const Shape xs = x.dimensions(), ys = y->dimensions();
  const size_t rank = xs.size();
  if (rank < 2 || ys.size() != rank || args.size() != Format::parts)
    return ffi::Error::InvalidArgument("a product of matrices and the parts of one was expected");
  Operands p{};
  p.rows = xs[rank - 2], p.inputs = xs[rank - 1], p.outputs = ys[rank - 1];
  Shape shapes[Format::parts];
  const uint8_t* data[Format::parts];
  for (int i = 0; i < Format::parts; ++i) {
    const auto part = args.get<ffi::AnyBuffer>(i);
    if (part.has_error()) return part.error();
    shapes[i] = part->dimensions();
    data[i] = static_cast<const uint8_t*>(part->untyped_data());
    p.pitch[i] = p.inputs / Format::block * Format::bytes[i];
    const int64_t itemsize = part->size_bytes() / std::max<int64_t>(1, part->element_count());
    if (shapes[i].size() != rank || shapes[i][rank - 2] != p.outputs || shapes[i][rank - 1] * itemsize != p.pitch[i])
      return ffi::Error::InvalidArgument("part " + std::to_string(i) + " of the weights does not fit the product");
  }
  if (p.inputs % Format::block) return ffi::Error::InvalidArgument("rows are no whole number of blocks");
  for (int64_t batch = 0; batch < volume(ys, rank - 2); ++batch) {
    p.x = x.typed_data() + matrix(xs, ys, batch) * p.rows * p.inputs;
    p.y = y->typed_data() + batch * p.rows * p.outputs;
    for (int i = 0; i < Format::parts; ++i)
      p.part[i] = data[i] + matrix(shapes[i], ys, batch) * p.outputs * p.pitch[i];
    product<Format>(p);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace forge

#define PRODUCT(Format)                                                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                                 \
      product_##Format, forge::multiply<forge::Format>,                                          \
      ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().RemainingArgs().Ret<ffi::Buffer<ffi::F32>>())

PRODUCT(Q8_0);
PRODUCT(Q4_0);
PRODUCT(Q4_1);
PRODUCT(Q5_0);
PRODUCT(Q5_1);
PRODUCT(IQ4_NL);
PRODUCT(MXFP4);
PRODUCT(BF16);
PRODUCT(F16);
PRODUCT(Q4_K);
PRODUCT(Q5_K);
PRODUCT(Q6_K);
PRODUCT(IQ4_XS);

extern "C" {

int forge_threads() { return forge::threads(); }

const char* forge_instructions() { return forge::INSTRUCTIONS; }
}
