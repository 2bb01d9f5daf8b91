# Flags of the per-instruction-set translation units of backends/cpu; which one runs is decided at run time (tables.cpp).
# -ffp-contract=off: only the multiply-adds that the source names are fused, so that a row's bits do not depend on the
# code path. -O3 for the unrolling that keeps the tiles in registers.
set(_cpu_dir ${CMAKE_SOURCE_DIR}/src/backends/cpu)
set(_cpu_common "-O3 -ffp-contract=off")
set(_vector_flags "")
if(GLINT_SANITIZE)  # instrumented kernels take minutes to compile at -O3
  set(_cpu_common "-O1 -ffp-contract=off")
endif()
if(GLINT_SANITIZE MATCHES "undefined")
  # The generic table is the same source over scalars: there the undefined-behaviour sanitizer looks at it. In the others
  # it would double the time of files that take longer than all else.
  set(_vector_flags "-fno-sanitize=undefined")
endif()
# GCC 12 warns about the uninitialised dummies of its own avx512fintrin.h.
set(_quiet "-Wno-uninitialized")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  string(APPEND _quiet " -Wno-maybe-uninitialized")
endif()
set(_avx2_flags "${_cpu_common} ${_vector_flags} -mavx2 -mfma -mf16c")
set(_avx512_flags "${_avx2_flags} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512 ${_quiet}")

# Instrumented code of instructions that this machine lacks would be compiled for minutes and never run.
if(GLINT_SANITIZE AND EXISTS /proc/cpuinfo)
  file(STRINGS /proc/cpuinfo _cpu_flags REGEX "^flags.*avx512f" LIMIT_COUNT 1)
  if(NOT _cpu_flags)
    string(APPEND _avx512_flags " -fno-sanitize=all")
  endif()
endif()
# Where several AVX-512 tables run, CI looks at the best of them: the same vectors, and more kernels. It does not run the
# generic table under the thread sanitizer.
set(_generic_flags "${_cpu_common}")
if(GLINT_SANITIZE MATCHES "thread")
  string(APPEND _generic_flags " -fno-sanitize=all")
endif()
set(_avx512_only "")
set(_vnni_only "")
if(GLINT_SANITIZE AND _cpu_flags MATCHES " avx512_vnni( |$)")
  set(_avx512_only "-fno-sanitize=all")
  if(_cpu_flags MATCHES " avx512_bf16( |$)")
    set(_vnni_only "-fno-sanitize=all")
  endif()
endif()

set_source_files_properties(${_cpu_dir}/isa_generic.cpp PROPERTIES COMPILE_FLAGS "${_generic_flags}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(${_cpu_dir}/isa_avx2.cpp PROPERTIES COMPILE_FLAGS "${_avx2_flags}")
  set_source_files_properties(${_cpu_dir}/isa_avx512.cpp PROPERTIES COMPILE_FLAGS "${_avx512_flags} ${_avx512_only}")
  set_source_files_properties(${_cpu_dir}/isa_avx512vnni.cpp PROPERTIES COMPILE_FLAGS "${_avx512_flags} -mavx512vnni ${_vnni_only}")
  set_source_files_properties(${_cpu_dir}/isa_avx512bf16.cpp PROPERTIES COMPILE_FLAGS "${_avx512_flags} -mavx512bf16 -mavx512vnni")
  set_source_files_properties(${_cpu_dir}/isa_amx.cpp PROPERTIES COMPILE_FLAGS "${_avx512_flags} -mavx512vnni -mavx512vbmi -mamx-tile -mamx-int8")
endif()

# The AVX-512 kernels built from the same source on top of SIMDe, for tests on machines without AVX-512. Linking the
# object library registers the tables "avx512(emulated)", "avx512bf16(emulated)" and "amx(emulated)". At -O1: SIMDe's nested inline functions
# take GCC over a minute a file at -O3, and nobody waits for these kernels.
# Where the machine has the instructions the tests run the kernels themselves: with AVX-512 BF16 only AMX is emulated.
# There is no "avx512vnni(emulated)": its kernels are those of avx512bf16 and, where that has BF16 dots, of avx512.
find_path(GLINT_SIMDE simde/x86/avx512.h)
set(_emulated ${GLINT_EMULATED})
set(_emulated_files avx512 avx512bf16 amx)
if(_emulated STREQUAL "AUTO")
  set(_emulated ON)
  if(EXISTS /proc/cpuinfo)
    file(STRINGS /proc/cpuinfo _native REGEX "^flags.* avx512f( |$)" LIMIT_COUNT 1)
    if(_native)
      list(REMOVE_ITEM _emulated_files avx512)
    endif()
    if(_native MATCHES " avx512_vnni( |$)" AND _native MATCHES " avx512_bf16( |$)")
      list(REMOVE_ITEM _emulated_files avx512bf16)  # amx stands upon the table that the machine runs itself
    endif()
    if(_native MATCHES " amx_int8( |$)")
      list(REMOVE_ITEM _emulated_files amx)
    endif()
  endif()
endif()
if(GLINT_TESTS AND GLINT_SIMDE AND _emulated AND _emulated_files)
  list(TRANSFORM _emulated_files REPLACE "(.+)" "${_cpu_dir}/emulated/\\1.cpp" OUTPUT_VARIABLE _emulated_sources)
  add_library(glint_cpu_emulated OBJECT ${_emulated_sources})
  if(NOT "avx512bf16" IN_LIST _emulated_files)
    target_compile_definitions(glint_cpu_emulated PRIVATE GLINT_EMULATED_UPON_NATIVE)
  endif()
  target_include_directories(glint_cpu_emulated PRIVATE ${CMAKE_SOURCE_DIR}/src ${GLINT_SIMDE})
  string(REPLACE "-O3" "-O1" _emulated_flags "${_avx2_flags}")
  separate_arguments(_emulated_flags UNIX_COMMAND "${_emulated_flags} -Wall -Wextra -Wno-psabi")
  target_compile_options(glint_cpu_emulated PRIVATE ${_emulated_flags})
  target_link_libraries(glint_cpu_emulated PRIVATE glint_ops)
endif()
