/** Being another user for a moment, as root: sockets then tell that one's number (SO_PEERCRED). */

/** The user `nobody`. */
export const NOBODY = 65534;

/** Does `work`, which makes or connects a socket, as another user. */
export function asNobody<T>(work: () => T): T {
  const { seteuid } = process;
  if (seteuid === undefined) throw new Error('there are no users here');
  seteuid(NOBODY);
  try {
    return work();
  } finally {
    seteuid(0);
  }
}
