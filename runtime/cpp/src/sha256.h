// SHA-256, piece by piece.
#pragma once

#include <memory>
#include <string>

#include "gamma/bytes.h"

struct evp_md_ctx_st;

namespace gamma_edge {

class Sha256 {
public:
    Sha256();
    ~Sha256();
    Sha256(const Sha256&) = delete;
    Sha256& operator=(const Sha256&) = delete;

    void add(View data);
    std::string hex();  ///< 64 digits; nothing can be added afterwards

private:
    struct Free {
        void operator()(evp_md_ctx_st* context) const;
    };
    std::unique_ptr<evp_md_ctx_st, Free> context_;
};

}  // namespace gamma_edge
