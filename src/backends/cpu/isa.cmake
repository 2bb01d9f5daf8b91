# Flags of the per-instruction-set translation units of backends/cpu; which one runs is decided at run time (tables.cpp).
# -ffp-contract=off: only the multiply-adds that the source names are fused, so that a row's bits do not depend on the
# code path. -O3 for the unrolling that keeps the tiles in registers.
set(_cpu_dir ${CMAKE_SOURCE_DIR}/src/backends/cpu)
set(_cpu_common "-O3 -ffp-contract=off")
# GCC 12 warns about the uninitialised dummies of its own avx512fintrin.h.
set(_quiet "-Wno-uninitialized -Wno-maybe-uninitialized")
set(_avx2_flags "${_cpu_common} -mavx2 -mfma -mf16c")
set(_avx512_flags "${_avx2_flags} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512 ${_quiet}")

set_source_files_properties(${_cpu_dir}/isa_generic.cpp PROPERTIES COMPILE_FLAGS "${_cpu_common}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(${_cpu_dir}/isa_avx2.cpp PROPERTIES COMPILE_FLAGS "${_avx2_flags}")
  set_source_files_properties(${_cpu_dir}/isa_avx512.cpp PROPERTIES COMPILE_FLAGS "${_avx512_flags}")
  set_source_files_properties(${_cpu_dir}/isa_avx512bf16.cpp PROPERTIES COMPILE_FLAGS "${_avx512_flags} -mavx512bf16 -mavx512vnni")
endif()

# The AVX-512 kernels built from the same source on top of SIMDe, for tests on machines without AVX-512. Linking the
# object library registers the tables "avx512(emulated)" and "avx512bf16(emulated)".
find_path(GLINT_SIMDE simde/x86/avx512.h)
if(GLINT_TESTS AND GLINT_SIMDE)
  add_library(glint_cpu_emulated OBJECT ${_cpu_dir}/emulated/avx512.cpp ${_cpu_dir}/emulated/avx512bf16.cpp)
  target_include_directories(glint_cpu_emulated PRIVATE ${CMAKE_SOURCE_DIR}/src ${GLINT_SIMDE})
  separate_arguments(_emulated_flags UNIX_COMMAND "${_avx2_flags} -Wall -Wextra -Wno-psabi")
  target_compile_options(glint_cpu_emulated PRIVATE ${_emulated_flags})
  target_link_libraries(glint_cpu_emulated PRIVATE glint_ops)
endif()
