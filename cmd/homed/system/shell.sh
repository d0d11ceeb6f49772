# shellcheck shell=sh
# Shows in a login shell what the credentials shell.prompt.prefix,
# shell.prompt.suffix and shell.welcome of its session say: pam_home.so with
# register or settings leaves them in the environment. systemd 257 and later
# has a file of its own for this, which then goes first.
if [ -n "${PS1-}" ] && [ ! -e /etc/profile.d/70-systemd-shell-extra.sh ]; then
	PS1=${SHELL_PROMPT_PREFIX-}$PS1${SHELL_PROMPT_SUFFIX-}
	if [ -n "${SHELL_WELCOME-}" ]; then
		printf '%s\n' "$SHELL_WELCOME"
		unset SHELL_WELCOME # once, not in the shells below
	fi
fi
