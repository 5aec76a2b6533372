#compdef bandpo
# Completion of `bandpo` for zsh, written by `bandpo --install-completion zsh`.
# bandpo itself finds the candidates: the script stays the same in other versions.
_bandpo() {
    local program=bandpo line before files folders
    local -a closed open paths
    [[ $words[1] == */* ]] && program=${~words[1]}
    line="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX"
    for line in ${(f)"$($program --complete zsh "$line" </dev/null 2>/dev/null)"}; do
        case $line in
            closed\ *) closed+=("${line#closed }") ;;
            open\ *) open+=("${line#open }") ;;
            *) paths+=("$line") ;;
        esac
    done
    local found=1
    _describe bandpo closed -- open -S '' && found=0
    for line in $paths; do
        before=${line#* }
        # The part before the path may be typed with backslashes.
        compset -P "${(b)before}" || compset -P "${(b)${(q)before}}"
        if [[ $line == folders* ]]; then _path_files -/ && found=0
        else _files && found=0
        fi
    done
    return found
}
if [[ $funcstack[1] == _bandpo ]]; then
    _bandpo "$@"
else
    compdef _bandpo bandpo
fi
