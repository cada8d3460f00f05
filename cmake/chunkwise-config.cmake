# find_package(chunkwise) defines the targets chunkwise::chunkwise (the shared library if there is one, otherwise the static one)
# and chunkwise::static. This file works where `cargo cinstall` installs it, and in the source tree, with target/release.
get_filename_component(_chunkwise_root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
get_filename_component(_chunkwise_prefix "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
set(_chunkwise_near
    PATHS "${_chunkwise_prefix}/lib" "${_chunkwise_prefix}/lib/${CMAKE_LIBRARY_ARCHITECTURE}" "${_chunkwise_root}/target/release"
    NO_DEFAULT_PATH)
find_path(chunkwise_INCLUDE_DIR chunkwise.h PATHS "${_chunkwise_prefix}/include" "${_chunkwise_root}/include" NO_DEFAULT_PATH)
find_library(chunkwise_STATIC_LIBRARY NAMES libchunkwise.a chunkwise.lib ${_chunkwise_near})
find_library(chunkwise_SHARED_LIBRARY NAMES libchunkwise.so libchunkwise.dylib ${_chunkwise_near})

if(chunkwise_INCLUDE_DIR AND (chunkwise_STATIC_LIBRARY OR chunkwise_SHARED_LIBRARY))
  set(chunkwise_FOUND TRUE)
else()
  set(chunkwise_FOUND FALSE)
  set(chunkwise_NOT_FOUND_MESSAGE "chunkwise.h or its library was not found")
  return()
endif()

if(chunkwise_STATIC_LIBRARY AND NOT TARGET chunkwise::static)
  include(CMakeFindDependencyMacro)
  find_dependency(Threads)
  add_library(chunkwise::static STATIC IMPORTED)
  set_target_properties(chunkwise::static PROPERTIES IMPORTED_LOCATION "${chunkwise_STATIC_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${chunkwise_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS};$<$<PLATFORM_ID:Linux>:m>")
endif()
if(NOT TARGET chunkwise::chunkwise)
  if(chunkwise_SHARED_LIBRARY)
    add_library(chunkwise::chunkwise SHARED IMPORTED)
    set_target_properties(chunkwise::chunkwise PROPERTIES IMPORTED_LOCATION "${chunkwise_SHARED_LIBRARY}"
      IMPORTED_NO_SONAME TRUE INTERFACE_INCLUDE_DIRECTORIES "${chunkwise_INCLUDE_DIR}")
  else()
    add_library(chunkwise::chunkwise ALIAS chunkwise::static)
  endif()
endif()
