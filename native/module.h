// One registration function a kernel family; called once from module.cpp.
#pragma once

#include <nanobind/nanobind.h>

void register_tun_relay(nanobind::module_& m);
