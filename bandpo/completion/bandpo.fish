# Completion of `bandpo` for fish, written by `bandpo --install-completion fish`.
# bandpo itself finds the candidates: the script stays the same in other versions.
function __bandpo_complete
    set -l program (commandline -opc)[1]
    string match -q '*/*' -- $program; or set program bandpo
    set program (string replace -r '^~' $HOME -- $program)
    set -l line (commandline -cp | string collect)
    command $program --complete fish "$line" </dev/null 2>/dev/null
end
complete -c bandpo -f -a '(__bandpo_complete)'
