# Faster builds with what the machine has; nothing here is required, and nothing changes what is built.
find_program(GLINT_CCACHE ccache)
if(GLINT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${GLINT_CCACHE})
endif()

find_program(GLINT_MOLD mold)
if(GLINT_MOLD AND NOT CMAKE_EXE_LINKER_FLAGS MATCHES "-fuse-ld=")
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_LINK_OPTIONS -fuse-ld=mold)
  check_cxx_source_compiles("int main() { return 0; }" GLINT_MOLD_LINKS)  # GCC before 12.1 does not know the flag
  unset(CMAKE_REQUIRED_LINK_OPTIONS)
  if(GLINT_MOLD_LINKS)
    add_link_options(-fuse-ld=mold)
  endif()
endif()
