// One registration function a kernel family; called once from module.cpp.
#pragma once

#include <nanobind/nanobind.h>

void register_tun_relay(nanobind::module_& m);
void register_ring(nanobind::module_& m);
void register_bits(nanobind::module_& m);
void register_elementwise(nanobind::module_& m);
void register_field(nanobind::module_& m);
void register_pages(nanobind::module_& m);
void register_sparse(nanobind::module_& m);
void register_cbsr(nanobind::module_& m);
void register_select(nanobind::module_& m);
void register_maxk_fused(nanobind::module_& m);
void register_partition(nanobind::module_& m);
void register_decoding(nanobind::module_& m);
void register_oblivious(nanobind::module_& m);
