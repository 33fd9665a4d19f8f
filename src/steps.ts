/**
 * Work that is written once and done in two ways: at once, or while the event loop goes on. It is a generator that yields
 * what takes long, one step at a time; who runs it decides how each is done. An error of a step is thrown where it was
 * yielded, so that `try` and `catch` in the generator undo what came before.
 */

/** Work that yields its long steps. */
export type Steps<Step, Result> = Generator<Step, Result, void>;

/** Does all of `steps` at once. */
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

/** Does all of `steps`; each may take its time. @param resume goes on in the generator, for who has to know when it runs */
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
