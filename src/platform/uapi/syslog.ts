/** The kernel's log: include/linux/syslog.h, which is not exported to user space; syslog(2) has its numbers too. */

export const SYSLOG_ACTION_READ_ALL = 3;
export const SYSLOG_ACTION_SIZE_BUFFER = 10;
