# Completion of homectl's command line for bash. What can follow, homectl knows:
# "homectl complete" gets the line up to the cursor and the word there.
_homectl() {
	mapfile -t COMPREPLY < <("$1" complete -- "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
	if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o bashdefault -o default -F _homectl homectl
