# Completion of `bandpo` for bash, written by `bandpo --install-completion bash`.
# bandpo itself finds the candidates: the script stays the same in other versions.
_bandpo() {
    local program=bandpo options candidate
    [[ $1 == */* ]] && program=${1/#\~/$HOME}
    COMPREPLY=()
    {
        IFS= read -r options
        while IFS= read -r candidate; do COMPREPLY+=("$candidate"); done
    } < <("$program" --complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" \
        </dev/null 2>/dev/null)
    # bash 3 has no compopt: it leaves quotes and slashes to its user.
    [[ $options == *filenames* ]] && compopt -o filenames 2>/dev/null
    [[ $options == *nospace* ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _bandpo bandpo
