// The U-Net's blocks on a CPU, for XLA's foreign function interface. `build.py` compiles this file,
// `ops.py` calls it.

#include "convolution.h"
#include "normalisation.h"

extern "C" int KdnetHasBfloat16() { return Has(dnnl::cpu_isa::avx512_core_bf16) ? 1 : 0; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    KdnetConvolve, Convolve,
    ffi::Ffi::Bind()
        .Arg<Argument>()
        .Arg<Argument>()
        .Arg<Argument>()
        .Ret<ffi::Buffer<ffi::F32>>()
        .Attr<bool>("bfloat16"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetConvolveBackwardInput, ConvolveBackwardInput,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("bfloat16"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetConvolveBackwardKernel, ConvolveBackwardKernel,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetNormalise, Normalise,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("epsilon")
                                  .Attr<float>("slope"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetNormaliseBackward, NormaliseBackward,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("slope"));
