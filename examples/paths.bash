# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts: quotes paths for Hydra. The scripts put $LAUNCH before the command that starts verl, so
# LAUNCH=echo prints the command and LAUNCH="verl-p2r plan --" estimates the run.

# Prints a text in quotes so that Hydra reads it literally; = , : ( ) [ ] { } # and spaces are special to Hydra.
# Prints null for an empty text. A backslash is doubled only where a quote follows.
quoted() {
  [ -n "$1" ] || { echo null && return; }
  printf "'%s'" "$(printf '%s' "$1" | sed -E "s/(\\\\*)'/\\1\\1\\\\'/g; s/(\\\\+)\$/\\1\\1/")"
}

# A list of files, [a.parquet,b.parquet], stays a list; one file is quoted.
files() {
  case "$1" in
    \[*\]) printf '%s' "$1" ;;
    *) quoted "$1" ;;
  esac
}

case "$PWD ${MODEL:-} ${DATA:-} ${MEDIA:-} ${OUT:-} ${TRAIN:-} ${VAL:-} ${CACHE:-} ${VERDICTS:-} ${JUDGE_MODEL:-}" in
  *'${'* | *$'\n'*)
    echo "a path or name holds \${ or a line break, which cannot be written in verl's config: rename it" >&2
    exit 2
    ;;
esac
