# SPDX-License-Identifier: Apache-2.0
# What a script needs to hand any path to verl's config; sourced by the scripts.

# Prints a text in quotes, so that Hydra takes it as it is: = , : ( ) [ ] { } # and blanks mean something to Hydra.
# Prints null for nothing. A backslash needs another one where a quote follows, and nowhere else.
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
