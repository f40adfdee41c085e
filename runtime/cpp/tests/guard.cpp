// What may be thrown inside a call of the C interface, and what comes out of it.
#include "guard.h"

#include <cstdio>
#include <cstring>

namespace {

using gamma_edge::Exit;
using gamma_edge::Failure;

int wrong = 0;

template <class Work>
void expect(Exit wanted, const char* text, const char* hint, const Work& work) {
    Failure failure;
    failure.set("what an earlier call left", "and its hint");
    const Exit found = gamma_edge::guarded(failure, work);
    if (found == wanted && std::strcmp(failure.text(), text) == 0 && std::strcmp(failure.hint(), hint) == 0) return;
    std::fprintf(stderr, "\"%s\": exit %d, text \"%s\", hint \"%s\"\n", text, static_cast<int>(found), failure.text(),
                 failure.hint());
    ++wrong;
}

}  // namespace

int main() {
    const char* const report = "this is a bug in gamma-edge; please report it";
    expect(Exit::done, "", "", [] {});
    expect(Exit::gate, "a score?is NaN", "look",
           [] { throw gamma_edge::Error(Exit::gate, "a score\nis NaN", "look"); });
    expect(Exit::environment, "out of memory", "", [] { throw std::bad_alloc(); });
    expect(Exit::bug, "odd", report, [] { throw std::runtime_error("odd"); });
    expect(Exit::bug, "an exception of an unknown kind", report, [] { throw 5; });
    Failure first, second;
    first.set("text", "hint");
    second.copy(first);
    wrong += std::strcmp(second.text(), "text") != 0 || std::strcmp(second.hint(), "hint") != 0;
    return wrong == 0 ? 0 : 1;
}
