/**
 * Work that is written once and run synchronously or asynchronously: a generator that yields its long steps. The runner
 * decides how each step is executed. An error of a step is thrown where it was yielded, so that `try` and `catch` in
 * the generator can undo earlier steps.
 */

/** Work that yields its long steps. */
export type Steps<Step, Result> = Generator<Step, Result, void>;

/** Runs all of `steps` synchronously. */
export function runSteps<Step, Result>(steps: Steps<Step, Result>, perform: (step: Step) => void): Result {
  let next = steps.next();
  while (next.done !== true) {
    let failure: { readonly error: unknown } | undefined;
    try {
      perform(next.value);
    } catch (error) {
      failure = { error };
    }
    next = failure === undefined ? steps.next() : steps.throw(failure.error);
  }
  return next.value;
}

/**
 * Runs all of `steps` asynchronously. @param resume continues the generator, for callers that must know when it runs
 */
export async function runStepsAsync<Step, Result>(
  steps: Steps<Step, Result>,
  perform: (step: Step) => Promise<void>,
  resume: (go: () => IteratorResult<Step, Result>) => IteratorResult<Step, Result> = (go) => go(),
): Promise<Result> {
  let next = resume(() => steps.next());
  while (next.done !== true) {
    let failure: { readonly error: unknown } | undefined;
    try {
      await perform(next.value);
    } catch (error) {
      failure = { error };
    }
    const { error } = failure ?? {};
    next = resume(() => (failure === undefined ? steps.next() : steps.throw(error)));
  }
  return next.value;
}
