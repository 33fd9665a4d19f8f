/** One listener of the process's end for all: each kind of thing would have its own else, and Node warns of more than ten. */

const actions = new Set<() => void>();

function runAll(): void {
  for (const action of [...actions]) action();
}

/**
 * Has `action` run when this thread ends by itself or by `process.exit`. What it throws is an uncaught exception.
 *
 * @returns takes it back; idempotent
 */
export function atExit(action: () => void): () => void {
  const own = (): void => action();
  if (actions.size === 0) process.on('exit', runAll);
  actions.add(own);
  return () => {
    if (actions.delete(own) && actions.size === 0) process.off('exit', runAll);
  };
}
