/// <reference path="./millgate-stage-context.d.ts" />
/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/evaluation@0.1.0' {
  export function evaluate(ctx: Context, answers: Array<Answer>): Evaluation;
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
  export type Context = import('millgate:stage/context@0.1.0').Context;
  export interface Answer {
    id: string,
    input: string,
    output: string,
    references: Array<string>,
  }
  export interface Score {
    name: string,
    value: number,
    explanation: string,
  }
  export interface CaseScores {
    id: string,
    scores: Array<Score>,
  }
  export interface Evaluation {
    cases: Array<CaseScores>,
    aggregate: Array<Score>,
  }
}
