// The extension module: each kernel family registers its functions here.
#include "module.h"

#include "cpu.h"

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of tradeoff";
    register_tun_relay(m);
    register_ring(m);
    register_bits(m);
    register_elementwise(m);
    register_field(m);
    register_pages(m);
    register_sparse(m);
    register_cbsr(m);
    register_select(m);
    register_maxk_fused(m);
    register_partition(m);
    register_decoding(m);
    register_oblivious(m);
    m.def("instruction_set", &tradeoff::isa_name, "The instruction set in use: avx512, avx2 or portable");
}
