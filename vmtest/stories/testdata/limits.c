/* A PAM module that gives the session limits, as one of an administrator's
 * may do for pam_systemd(8). */
#include <stddef.h>

#include <security/pam_modules.h>

int pam_sm_open_session(pam_handle_t *h, int flags, int argc, const char **argv)
{
	(void)flags;
	(void)argc;
	(void)argv;
	pam_set_data(h, "systemd.memory_max", "200M", NULL);
	pam_set_data(h, "systemd.tasks_max", "50", NULL);
	pam_set_data(h, "systemd.cpu_weight", "100", NULL);
	pam_set_data(h, "systemd.io_weight", "340", NULL);
	pam_set_data(h, "systemd.runtime_max_sec", "3600", NULL);
	return PAM_SUCCESS;
}

int pam_sm_close_session(pam_handle_t *h, int flags, int argc, const char **argv)
{
	(void)h;
	(void)flags;
	(void)argc;
	(void)argv;
	return PAM_SUCCESS;
}
