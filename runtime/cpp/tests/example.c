/* The example of ../README.md: example BUNDLE IMAGE. */
#include <gamma/gamma.h>
#include <stdio.h>

int main(int count, char** words) {
    if (count != 3) return GAMMA_EDGE_USAGE;
    const char *bundle = words[1], *photo = words[2];
    gamma_edge_scorer* scorer = NULL;
    gamma_edge_score score = GAMMA_EDGE_SCORE;
    gamma_edge_status status = gamma_edge_open(bundle, NULL, &scorer);
    if (status == GAMMA_EDGE_OK) status = gamma_edge_score_file(scorer, photo, &score);
    if (status == GAMMA_EDGE_OK)
        printf("%.4f  %s\n", score.value, score.scene);
    else
        fprintf(stderr, "error: %s\n", gamma_edge_error_text(NULL));
    gamma_edge_close(scorer);
    return (int)status;
}
