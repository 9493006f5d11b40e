/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/inference@0.1.0' {
  export function complete(request: CompletionRequest): Completion;
  export function embed(model: string, texts: Array<string>): Array<Float32Array>;
  export function score(model: string, text: string): Float64Array;
  export interface CompletionRequest {
    model: string,
    prompt: string,
    chat: boolean,
    maxTokens: number,
    temperature: number,
    stop: Array<string>,
  }
  export interface Completion {
    text: string,
    promptTokens: number,
    completionTokens: number,
    meanLogProbability: number,
  }
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
}
