/* The example of ../README.md: example BUNDLE IMAGE. */
#include <gamma/gamma.h>
#include <stdio.h>

int main(int count, char** words) {
    gamma_edge_scorer* scorer = NULL;
    gamma_edge_score score = GAMMA_EDGE_SCORE;
    if (count != 3) return GAMMA_EDGE_USAGE;
    gamma_edge_status status = gamma_edge_open(words[1], NULL, &scorer);
    if (status == GAMMA_EDGE_OK) status = gamma_edge_score_file(scorer, words[2], &score);
    if (status == GAMMA_EDGE_OK) printf("%.4f  %s\n", score.value, score.scene);
    if (status != GAMMA_EDGE_OK) fprintf(stderr, "error: %s\n", gamma_edge_error_text(NULL));
    gamma_edge_close(scorer);
    return status;
}
