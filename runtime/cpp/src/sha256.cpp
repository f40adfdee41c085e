#include "sha256.h"

#include <openssl/evp.h>

#include "gamma/bundle.h"
#include "gamma/error.h"

namespace gamma_edge {
namespace {

void check(int result) {
    if (result != 1) throw Error(Exit::environment, "OpenSSL's SHA-256 failed");
}

}  // namespace

void Sha256::Free::operator()(evp_md_ctx_st* context) const { EVP_MD_CTX_free(context); }

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
    if (!context_) throw std::bad_alloc();
    check(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}

Sha256::~Sha256() = default;

void Sha256::add(View data) { check(EVP_DigestUpdate(context_.get(), data.data, data.size)); }

std::string Sha256::hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    check(EVP_DigestFinal_ex(context_.get(), digest, &size));
    static const char* const kDigits = "0123456789abcdef";
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
        text += kDigits[digest[i] >> 4];
        text += kDigits[digest[i] & 15];
    }
    return text;
}

std::string sha256(View data) {
    Sha256 digest;
    digest.add(data);
    return digest.hex();
}

}  // namespace gamma_edge
