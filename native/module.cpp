// The extension module: each kernel family registers its functions here.
#include "module.h"

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of tradeoff";
    register_tun_relay(m);
}
