// Checks of operands before any kernel runs: a wrong one is a ValueError in Python.
#pragma once

#include <stdexcept>

namespace tradeoff {

inline void require(bool condition, const char *what) {
    if (!condition) throw std::invalid_argument(what);
}

}  // namespace tradeoff
