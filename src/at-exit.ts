/** One shared listener for the process's exit: Node warns of more than ten listeners. */

const actions = new Set<() => void>();

function runAll(): void {
  for (const action of [...actions]) action();
}

/**
 * Runs `action` when this thread ends normally or by `process.exit`. An exception in it is uncaught.
 *
 * @returns removes the action; idempotent
 */
export function atExit(action: () => void): () => void {
  const own = (): void => action();
  if (actions.size === 0) process.on('exit', runAll);
  actions.add(own);
  return () => {
    if (actions.delete(own) && actions.size === 0) process.off('exit', runAll);
  };
}
