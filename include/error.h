// error.h: what is thrown when something cannot be served. check.h throws it, main() prints it; users of the
// library catch it.
#pragma once
#include <stdexcept>

namespace easel {

// What a user did or gave that cannot be served: one line, what was expected and what was found.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The device that this process computes on is lost: no later request can be served either.
struct DeviceError : Error {
    using Error::Error;
};

}  // namespace easel
