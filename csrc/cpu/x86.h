// What is compiled for x86 alone. Other machines have the portable kernels under all names, and library.py leaves the
// sources for x86's instruction sets out.
#pragma once
#if defined(__x86_64__) && !defined(NERFTRAIN_PORTABLE)  // which a test defines, to get what other machines get
#define NT_X86
#define NT_X86_KERNELS(Kernels, family, isa) extern const Kernels family##_##isa
#else
#define NT_X86_KERNELS(Kernels, family, isa) inline const Kernels& family##_##isa = family##_portable
#endif
